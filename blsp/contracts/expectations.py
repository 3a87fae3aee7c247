"""What the corpus and the continuations must be like, for Great Expectations to judge.

Every expectation has a name (in reports and messages), a sentence that says what is expected, the remedy, and
a severity: `critical` stops the pipeline, `warning` is shown. Values are judged on a sample of the rows; what one row
may spoil for all, such as an id used twice or a sentence in two splits, is judged in full.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from blsp.contracts.counts import ALL_SOURCES
from blsp.params import Params

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

# What identifies a row where it is shown as an example.
SHOWN_COLUMNS = {
    "preparation": ["source"],
    "corpus": ["id", "split", "speaker", "text"],
    "answers": ["behaviour"],
    "continuations": ["id", "split", "behaviour"],
}
# What is shown of the tables that are counts themselves, and under which names.
COUNTS = {
    "preparation": {"source": "source", "rows_in": "rows", "rows_kept": "kept", "dropped": "dropped"},
    "answers": {
        "behaviour": "behaviour",
        "utterances": "utterances",
        "rows_not_asked": "not asked",
        "rows_in": "asked",
        "rows_kept": "kept",
        "dropped": "dropped",
    },
}


def expectations(params: Params) -> "dict[str, list[Expectation]]":
    """What is expected of each table that `blsp.contracts` makes, with the limits of `params`."""
    return {
        "preparation": _preparation(params),
        "corpus": _corpus(params),
        "answers": _answers(params),
        "continuations": _continuations(params),
    }


def _rule(
    kind: "type[Expectation]",
    name: str,
    description: str,
    remedy: str,
    severity: Literal["critical", "warning"] = "critical",
    in_full: bool = False,
    shows: Sequence[str] = (),
    drops_of: str | None = None,
    **arguments: Any,
) -> "Expectation":
    """`in_full`: judged on every row, not on a sample. `shows`: columns that examples have besides. `drops_of`: the
    source or behaviour whose dropped rows are to be shown, by reason, whatever the verdict.
    """
    meta = {"name": name, "remedy": remedy, "in_full": in_full, "shows": list(shows), "drops_of": drops_of}
    return kind(description=description, notes=remedy, meta=meta, severity=severity, **arguments)


def _preparation(params: Params) -> "list[Expectation]":
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    again = "Run `blsp corpus` again: data/corpus and reports/corpus.json are not of one run."
    limit = params.validate_.max_drop_share
    of_all = Column("source") == ALL_SOURCES
    return [
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "rows accounted for",
            "Every row of every source was either kept or dropped for a reason.",
            again,
            in_full=True,
            column_A="rows_in",
            column_B="rows_accounted",
        ),
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "kept rows packed",
            "Every row that was kept is in the packed corpus, and nothing else is.",
            again,
            in_full=True,
            column_A="rows_kept",
            column_B="rows_packed",
            row_condition=of_all,
        ),
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "dropped rows listed",
            "Every row that was dropped is listed with its reason in data/corpus/dropped.jsonl.gz.",
            again,
            in_full=True,
            column_A="dropped",
            column_B="listed",
        ),
        _rule(
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


def _corpus(params: Params) -> "list[Expectation]":
    from great_expectations import expectations as gxe

    limits, rate = params.validate_, params.corpus.sampling_rate_hz
    again = "Run `blsp corpus` again; if it comes back, the limits under `corpus` and `validate` disagree."
    return [
        _rule(
            gxe.ExpectColumnValuesToBeUnique,
            "unique ids",
            "Every utterance has an id of its own.",
            "Give the source's rows ids of their own, or none: then they are made.",
            in_full=True,
            column="id",
        ),
        _rule(
            gxe.ExpectColumnValuesToMatchRegex,
            "transcripts not empty",
            "Every utterance has a transcript with at least one letter or digit.",
            "Take such rows out of the source, or run `blsp corpus` again: it drops them.",
            column="text",
            regex=r"[^\W_]",
        ),
        _rule(
            gxe.ExpectColumnValuesToBeBetween,
            "durations in range",
            f"Every utterance lasts between {params.corpus.min_duration_s:g} and {limits.max_duration_s:g} s.",
            again,
            column="duration_s",
            min_value=params.corpus.min_duration_s,
            max_value=limits.max_duration_s,
        ),
        _rule(
            gxe.ExpectColumnValuesToBeInSet,
            "one sampling rate",
            f"All audio has {rate:,} samples a second.",
            "Run `blsp corpus` again: it resamples to corpus.sampling_rate_hz.",
            column="sampling_rate_hz",
            value_set=[rate],
        ),
        _rule(
            gxe.ExpectColumnValuesToBeBetween,
            "plausible speaking rates",
            f"Every transcript has between {limits.min_chars_per_s:g} and {limits.max_chars_per_s:g} characters "
            "a second of audio; outside, text and audio do not belong together.",
            again,
            column="chars_per_s",
            min_value=limits.min_chars_per_s,
            max_value=limits.max_chars_per_s,
        ),
        _rule(
            gxe.ExpectColumnValuesToNotMatchRegex,
            "no sentence in two splits",
            "No sentence, case and punctuation aside, is in more than one of train, dev and test.",
            "Take the sentence out of all splits but one, or leave `split` out of the source's rows.",
            in_full=True,
            column="sentence_splits",
            regex=",",
        ),
        _rule(
            gxe.ExpectColumnValuesToNotMatchRegex,
            "no speaker in two splits",
            "No speaker is in more than one of train, dev and test.",
            "Give all rows of a speaker one `split`, or leave `split` out of the source's rows.",
            in_full=True,
            column="speaker_splits",
            regex=",",
        ),
        _rule(
            gxe.ExpectColumnValuesToNotBeNull,
            "licences present",
            "Every utterance names the licence it is under.",
            "Add `licence` to the source's rows.",
            column="licence",
        ),
        _rule(
            gxe.ExpectColumnDistinctValuesToContainSet,
            "something to train and to test on",
            "There are utterances to train on and utterances to test on.",
            "Name `split` in the source's rows, or raise corpus.test_share.",
            in_full=True,
            column="split",
            value_set=["train", "test"],
        ),
        _rule(
            gxe.ExpectColumnDistinctValuesToContainSet,
            "something to watch training on",
            "There are utterances in dev.",
            "Without them training has no curve on unseen speech. Name `split` in the source's rows, or raise "
            "corpus.dev_share.",
            severity="warning",
            in_full=True,
            column="split",
            value_set=["dev"],
        ),
        _rule(
            gxe.ExpectColumnValuesToNotBeNull,
            "speakers known",
            "Every utterance names its speaker; without, nobody can tell whether a voice is in two splits.",
            "Add `speaker` to the source's rows.",
            severity="warning",
            column="speaker",
        ),
        _rule(
            gxe.ExpectColumnValuesToBeInSet,
            "continuations complete",
            f"Every utterance has a row for each behaviour ({', '.join(params.continuations.behaviours)}), or is "
            "listed in data/continuations/dropped.jsonl.gz with the reason why not. A behaviour that only a share of "
            "the utterances is asked for is judged by its counts, under Answers.",
            "Run `blsp continuations` again.",
            in_full=True,
            column="missing_continuations",
            value_set=[""],
        ),
    ]


def _answers(params: Params) -> "list[Expectation]":
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    again = "Run `blsp continuations` again: data/continuations and reports/continuations.json are not of one run."
    limit = params.validate_.max_answer_drop_share
    rules = [
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "utterances accounted for",
            "Under every behaviour, each utterance was answered, dropped for a reason, or not asked because the "
            "behaviour has a smaller share.",
            again,
            in_full=True,
            column_A="utterances",
            column_B="rows_accounted",
        ),
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "kept answers written",
            "Every answer that was kept is in data/continuations, and nothing else is.",
            again,
            in_full=True,
            column_A="rows_kept",
            column_B="rows_found",
        ),
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "dropped answers listed",
            "Every answer that was dropped is listed with its reason in data/continuations/dropped.jsonl.gz.",
            again,
            in_full=True,
            column_A="dropped",
            column_B="listed",
        ),
        _rule(
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
        _rule(
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


def _continuations(params: Params) -> "list[Expectation]":
    from great_expectations import expectations as gxe

    again = "Run `blsp continuations` again: it was written for another corpus."
    texts = ["transcript", "text"]
    rules = [
        _rule(
            gxe.ExpectCompoundColumnsToBeUnique,
            "one row an utterance and behaviour",
            "No utterance has two rows of the same behaviour.",
            again,
            in_full=True,
            column_list=["id", "behaviour"],
        ),
        _rule(
            gxe.ExpectColumnValuesToBeInSet,
            "transcripts up to date",
            "Every continuation was written from the transcript that the corpus has now.",
            again,
            in_full=True,
            shows=["transcript", "corpus_text"],
            column="up_to_date",
            value_set=[True],
        ),
        _rule(
            gxe.ExpectColumnValuesToMatchRegex,
            "continuations not empty",
            "Every continuation has text.",
            "Look at the rows: the LLM ended at once. Its chat template or the instruction under "
            "continuations.behaviours does not suit it.",
            shows=texts,
            column="text",
            regex=r"\S",
        ),
        _rule(
            gxe.ExpectColumnValuesToBeInSet,
            "finish reasons known",
            "Every continuation either ended by itself (stop) or was cut at the token limit (length).",
            again,
            shows=texts,
            column="finish_reason",
            value_set=["stop", "length"],
        ),
    ]
    for behaviour in params.continuations.behaviours:
        rules += _of_behaviour(behaviour, params)
    return rules


def _of_behaviour(behaviour: str, params: Params) -> "list[Expectation]":
    """The expectations on shares, which are judged for each behaviour: a rare one must not hide behind others."""
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    limits = params.validate_
    only = Column("behaviour") == behaviour
    rules = [
        _rule(
            gxe.ExpectColumnValuesToBeInSet,
            f"few of {behaviour} cut",
            f"At most {100 * limits.max_length_share:g}% of the rows of `{behaviour}` were cut at the token limit.",
            "Raise continuations.max_new_tokens, ask for shorter answers under continuations.behaviours, or raise "
            "validate.max_length_share.",
            shows=["transcript", "text"],
            column="finish_reason",
            value_set=["stop"],
            mostly=_mostly(limits.max_length_share),
            row_condition=only,
        )
    ]
    if params.continuations.behaviours[behaviour].answer == "new":
        rules.append(
            _rule(
                gxe.ExpectColumnValuesToBeInSet,
                f"{behaviour} is no copy",
                f"At most {100 * limits.max_copy_share:g}% of the rows of `{behaviour}` only repeat their transcript.",
                "Look at the rows: an LLM that copies does not follow the instruction. Reword it under "
                "continuations.behaviours, use another LLM, or raise validate.max_copy_share.",
                shows=["transcript", "text"],
                column="is_copy",
                value_set=[False],
                mostly=_mostly(limits.max_copy_share),
                row_condition=only,
            )
        )
    return rules


def _mostly(largest_share: float) -> float:
    # 1 - 0.7 is 0.30000000000000004 and would refuse exactly 70 %.
    return round(1 - largest_share, 12)
