"""What is expected of the utterances and of what the LLM wrote for them."""

from typing import TYPE_CHECKING

from blsp.contracts.rule import rule
from blsp.params import Params

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation


def corpus(params: Params) -> "list[Expectation]":
    """The packed utterances; the last one is about the continuations too."""
    from great_expectations import expectations as gxe

    limits, rate = params.validate_, params.corpus.sampling_rate_hz
    again = "Run `blsp corpus` again; if it comes back, the limits under `corpus` and `validate` disagree."
    return [
        rule(
            gxe.ExpectColumnValuesToBeUnique,
            "unique ids",
            "Every utterance has an id of its own.",
            "Give the source's rows ids of their own, or none: then they are made.",
            in_full=True,
            column="id",
        ),
        rule(
            gxe.ExpectColumnValuesToMatchRegex,
            "transcripts not empty",
            "Every utterance has a transcript with at least one letter or digit.",
            "Take such rows out of the source, or run `blsp corpus` again: it drops them.",
            column="text",
            regex=r"[^\W_]",
        ),
        rule(
            gxe.ExpectColumnValuesToBeBetween,
            "durations in range",
            f"Every utterance lasts between {params.corpus.min_duration_s:g} and {limits.max_duration_s:g} s.",
            again,
            column="duration_s",
            min_value=params.corpus.min_duration_s,
            max_value=limits.max_duration_s,
        ),
        rule(
            gxe.ExpectColumnValuesToBeInSet,
            "one sampling rate",
            f"All audio has {rate:,} samples a second.",
            "Run `blsp corpus` again: it resamples to corpus.sampling_rate_hz.",
            column="sampling_rate_hz",
            value_set=[rate],
        ),
        rule(
            gxe.ExpectColumnValuesToBeBetween,
            "plausible speaking rates",
            f"Every transcript has between {limits.min_chars_per_s:g} and {limits.max_chars_per_s:g} characters "
            "a second of audio, digits counted as words; outside, text and audio do not belong together.",
            again,
            column="chars_per_s",
            min_value=limits.min_chars_per_s,
            max_value=limits.max_chars_per_s,
        ),
        rule(
            gxe.ExpectColumnValuesToNotMatchRegex,
            "no sentence in two splits",
            "No sentence, case and punctuation aside, is in more than one of train, dev and test.",
            "Take the sentence out of all splits but one, or leave `split` out of the source's rows.",
            in_full=True,
            column="sentence_splits",
            regex=",",
        ),
        rule(
            gxe.ExpectColumnValuesToNotMatchRegex,
            "no speaker in two splits",
            "No speaker is in more than one of train, dev and test.",
            "Give all rows of a speaker one `split`, or leave `split` out of the source's rows.",
            in_full=True,
            column="speaker_splits",
            regex=",",
        ),
        rule(
            gxe.ExpectColumnValuesToNotBeNull,
            "licences present",
            "Every utterance names the licence it is under; one that names none is recorded as of unknown licence.",
            "Add `licence` to the source in corpus.sources, or to its rows.",
            severity="warning",
            column="licence",
        ),
        rule(
            gxe.ExpectColumnDistinctValuesToContainSet,
            "something to train and to test on",
            "There are utterances to train on and utterances to test on.",
            "Name `split` in the source's rows, or raise corpus.test_share.",
            in_full=True,
            column="split",
            value_set=["train", "test"],
        ),
        rule(
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
        rule(
            gxe.ExpectColumnValuesToNotBeNull,
            "speakers known",
            "Every utterance names its speaker; without, nobody can tell whether a voice is in two splits.",
            "Add `speaker` to the source's rows.",
            severity="warning",
            column="speaker",
        ),
        rule(
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


def continuations(params: Params) -> "list[Expectation]":
    """What the LLM wrote."""
    from great_expectations import expectations as gxe

    again = "Run `blsp continuations` again: it was written for another corpus."
    texts = ["transcript", "text"]
    rules = [
        rule(
            gxe.ExpectCompoundColumnsToBeUnique,
            "one row an utterance and behaviour",
            "No utterance has two rows of the same behaviour.",
            again,
            in_full=True,
            column_list=["id", "behaviour"],
        ),
        rule(
            gxe.ExpectColumnValuesToBeInSet,
            "transcripts up to date",
            "Every continuation was written from the transcript that the corpus has now.",
            again,
            in_full=True,
            shows=["transcript", "corpus_text"],
            column="up_to_date",
            value_set=[True],
        ),
        rule(
            gxe.ExpectColumnValuesToMatchRegex,
            "continuations not empty",
            "Every continuation has text.",
            "Look at the rows: the LLM ended at once. Its chat template or the instruction under "
            "continuations.behaviours does not suit it.",
            shows=texts,
            column="text",
            regex=r"\S",
        ),
        rule(
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
        rule(
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
            rule(
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
