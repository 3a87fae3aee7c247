"""What the corpus and the continuations must be like, as Great Expectations suites.

Every expectation has a name (in reports and messages), a sentence that says what is expected, the remedy, and
a severity: `critical` stops the pipeline, `warning` is shown.
"""

from typing import TYPE_CHECKING, Any, Literal

from blsp.params import Params

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

# The behaviour that is asked to say its transcript again.
REPETITION = "repetition"

# What identifies a row where it is shown as an example.
SHOWN_COLUMNS = {
    "preparation": ["source", "rows_in", "rows_kept", "dropped"],
    "corpus": ["id", "split", "speaker", "text"],
    "continuations": ["id", "split", "behaviour", "transcript", "text"],
}


def suites(params: Params) -> "dict[str, ExpectationSuite]":
    """The suite of each table that `blsp.contracts.tables` makes, with the limits of `params`."""
    import great_expectations as gx

    expectations = {
        "preparation": _preparation(params),
        "corpus": _corpus(params),
        "continuations": _continuations(params),
    }
    return {table: gx.ExpectationSuite(name=table, expectations=rules) for table, rules in expectations.items()}


def _rule(
    kind: "type[Expectation]",
    name: str,
    description: str,
    remedy: str,
    severity: Literal["critical", "warning"] = "critical",
    **arguments: Any,
) -> "Expectation":
    meta = {"name": name, "remedy": remedy}
    return kind(description=description, notes=remedy, meta=meta, severity=severity, **arguments)


def _preparation(params: Params) -> "list[Expectation]":
    from great_expectations import expectations as gxe

    again = "Run `blsp corpus` again: the shards and reports/corpus.json are not of one run."
    limit = params.validate_.max_drop_share
    return [
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "rows accounted for",
            "Every row of the source was either kept or dropped for a reason.",
            again,
            column_A="rows_in",
            column_B="rows_accounted",
        ),
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "kept rows packed",
            "Every row that was kept is in the packed corpus, and nothing else is.",
            again,
            column_A="rows_kept",
            column_B="rows_packed",
        ),
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "dropped rows listed",
            "Every row that was dropped is listed with its reason.",
            again,
            column_A="rows_dropped",
            column_B="rows_listed",
        ),
        _rule(
            gxe.ExpectColumnValuesToBeBetween,
            "few rows dropped",
            f"At most {100 * limit:g}% of the source's rows were dropped.",
            "Look at dropped_rows in reports/corpus.json. Mend the source, or the limits under `corpus` in "
            "params.yaml; if so much must go, raise validate.max_drop_share.",
            column="drop_share",
            max_value=limit,
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
            column="sentence_splits",
            regex=",",
        ),
        _rule(
            gxe.ExpectColumnValuesToNotMatchRegex,
            "no speaker in two splits",
            "No speaker is in more than one of train, dev and test.",
            "Give all rows of a speaker one `split`, or leave `split` out of the source's rows.",
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
            "listed in reports/continuations.json with the reason why not.",
            "Run `blsp continuations` again.",
            column="missing_continuations",
            value_set=[""],
        ),
    ]


def _continuations(params: Params) -> "list[Expectation]":
    from great_expectations import expectations as gxe

    again = "Run `blsp continuations` again: it was written for another corpus."
    rules = [
        _rule(
            gxe.ExpectColumnDistinctValuesToContainSet,
            "every behaviour written",
            "There are continuations of every behaviour.",
            "Look at dropped_rows in reports/continuations.json; most likely continuations.max_prompt_tokens is "
            "too low.",
            column="behaviour",
            value_set=list(params.continuations.behaviours),
        ),
        _rule(
            gxe.ExpectCompoundColumnsToBeUnique,
            "one row an utterance and behaviour",
            "No utterance has two rows of the same behaviour.",
            again,
            column_list=["id", "behaviour"],
        ),
        _rule(
            gxe.ExpectColumnPairValuesToBeEqual,
            "transcripts up to date",
            "Every continuation was written from the transcript that the corpus has now.",
            again,
            column_A="transcript",
            column_B="corpus_text",
            ignore_row_if="neither",
        ),
        _rule(
            gxe.ExpectColumnValuesToMatchRegex,
            "continuations not empty",
            "Every continuation has text.",
            "Look at the rows: the LLM ended at once. Its chat template or the instruction under "
            "continuations.behaviours does not suit it.",
            column="text",
            regex=r"\S",
        ),
        _rule(
            gxe.ExpectColumnValuesToBeInSet,
            "finish reasons known",
            "Every continuation either ended by itself (stop) or was cut at the token limit (length).",
            again,
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
            column="finish_reason",
            value_set=["stop"],
            mostly=_mostly(limits.max_length_share),
            row_condition=only,
        )
    ]
    if behaviour != REPETITION:
        rules.append(
            _rule(
                gxe.ExpectColumnValuesToBeInSet,
                f"{behaviour} is no copy",
                f"At most {100 * limits.max_copy_share:g}% of the rows of `{behaviour}` only repeat their transcript.",
                "Look at the rows: an LLM that copies does not follow the instruction. Reword it under "
                "continuations.behaviours, use another LLM, or raise validate.max_copy_share.",
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
