"""What is expected of the counts: nothing is lost, and not too much is dropped."""

from typing import TYPE_CHECKING

from blsp.contracts.counts import ALL_SOURCES
from blsp.contracts.rule import rule
from blsp.params import Params

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation


def preparation(params: Params) -> "list[Expectation]":
    """What became of the rows of each source."""
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    again = "Run `blsp corpus` again: data/corpus and reports/corpus.json are not of one run."
    limit = params.validate_.max_drop_share
    of_all = Column("source") == ALL_SOURCES
    return [
        rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "rows accounted for",
            "Every row of every source was either kept or dropped for a reason.",
            again,
            in_full=True,
            column_A="rows_in",
            column_B="rows_accounted",
        ),
        rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "kept rows packed",
            "Every row that was kept is in the packed corpus, and nothing else is.",
            again,
            in_full=True,
            column_A="rows_kept",
            column_B="rows_packed",
            row_condition=of_all,
        ),
        rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "dropped rows listed",
            "Every row that was dropped is listed with its reason in data/corpus/dropped.jsonl.gz.",
            again,
            in_full=True,
            column_A="dropped",
            column_B="listed",
        ),
        rule(
            gxe.ExpectColumnValuesToBeBetween,
            "few rows dropped",
            f"At most {100 * limit:g}% of the sources' rows were dropped.",
            "Look at the reasons in reports/corpus.json and at the rows in data/corpus/dropped.jsonl.gz. Mend the "
            "source, or the limits under `corpus` in params.yaml; if so much must go, raise validate.max_drop_share.",
            in_full=True,
            drops_of=ALL_SOURCES,
            column="drop_share",
            max_value=limit,
            row_condition=of_all,
        ),
    ]


def answers(params: Params) -> "list[Expectation]":
    """What became of each utterance under each behaviour."""
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    again = "Run `blsp continuations` again: data/continuations and reports/continuations.json are not of one run."
    limit = params.validate_.max_answer_drop_share
    rules = [
        rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "utterances accounted for",
            "Under every behaviour, each utterance was answered, dropped for a reason, or not asked because the "
            "behaviour has a smaller share.",
            again,
            in_full=True,
            column_A="utterances",
            column_B="rows_accounted",
        ),
        rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "kept answers written",
            "Every answer that was kept is in data/continuations, and nothing else is.",
            again,
            in_full=True,
            column_A="rows_kept",
            column_B="rows_found",
        ),
        rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "dropped answers listed",
            "Every answer that was dropped is listed with its reason in data/continuations/dropped.jsonl.gz.",
            again,
            in_full=True,
            column_A="dropped",
            column_B="listed",
        ),
        rule(
            gxe.ExpectColumnValuesToBeBetween,
            "every behaviour written",
            "There are continuations of every behaviour.",
            "Look at the reasons in reports/continuations.json; most likely continuations.max_prompt_tokens is too "
            "low.",
            in_full=True,
            column="rows_found",
            min_value=1,
        ),
    ]
    rules += [
        rule(
            gxe.ExpectColumnValuesToBeBetween,
            f"few answers of {behaviour} dropped",
            f"For no one reason more than {100 * limit:g}% of the answers of `{behaviour}` were dropped.",
            "Look at the answers in data/continuations/dropped.jsonl.gz: what they have in common tells whether the "
            "instruction under continuations.behaviours must be worded otherwise, another LLM is wanted, or a rule "
            "does not suit this data. If so much must go, raise validate.max_answer_drop_share.",
            in_full=True,
            drops_of=behaviour,
            column="largest_drop_share",
            max_value=limit,
            row_condition=Column("behaviour") == behaviour,
        )
        for behaviour in params.continuations.behaviours
    ]
    return rules
