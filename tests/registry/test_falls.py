from typing import Any

import numpy as np
import pandas as pd
import pytest

from blsp.params import Params, load_params
from blsp.registry.falls import check_falls
from tests.trained import PARAMS

ITEMS = 60


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(PARAMS)


def answers(wrong: int = 0, tasks: tuple[str, ...] = ("asr", "slu", "continuation"), **columns: Any) -> pd.DataFrame:
    """Three tasks' answers, the first `wrong` items of each wrong, and improbable where there is no right one."""
    rows = [
        {
            "system": "speech",
            "condition": "clean",
            "task": task,
            "instruction": f"do {task}",
            "id": f"test-{number}",
            "language": "en",
            "audio_s": 1.0 + number,
            "transcript": "the lamp is on",
            "reference": {"asr": "the lamp is on", "slu": "lamp_on", "continuation": None}[task],
            "answer": "no" if number < wrong else {"asr": "The lamp is on.", "slu": "lamp on"}.get(task, "and warm"),
            "counts": np.array([9.0 if number < wrong else 1.0, 3.0]) if task == "continuation" else None,
        }
        for task in tasks
        for number in range(ITEMS)
    ]
    return pd.DataFrame(rows).assign(**columns)


def failed(found: Any) -> list[str]:
    return [check.metric.partition(" ")[0] for check in found.checks if not check.holds]


def test_equal_answers_are_no_fall(params: Params) -> None:
    found = check_falls(answers(), answers(), params, same_llm=True)
    assert [check.metric for check in found.checks] == [
        "speech.asr.wer less champion's",
        "speech.slu.accuracy less champion's",
        "speech.continuation.perplexity less champion's",
    ]
    assert [check.value for check in found.checks] == [0.0, 0.0, 0.0]
    assert (failed(found), found.notes) == ([], ())


def test_a_fall_in_any_task_is_one_and_a_rise_is_none(params: Params) -> None:
    """Errors and perplexity fall upwards."""
    assert failed(check_falls(answers(wrong=15), answers(), params, same_llm=True)) == [
        "speech.asr.wer",
        "speech.slu.accuracy",
        "speech.continuation.perplexity",
    ]
    assert failed(check_falls(answers(), answers(wrong=15), params, same_llm=True)) == []


def test_what_the_choice_of_items_may_explain_is_no_fall(params: Params) -> None:
    (check,) = check_falls(answers(1, ("slu",)), answers(0, ("slu",)), params, same_llm=True).checks
    assert check.holds
    assert check.source.startswith("-0.01667 [-0.05, +0] on 60 of 60 items, p 1.000")


def test_only_a_fall_beyond_what_is_tolerated_counts(params: Params) -> None:
    ours, theirs = answers(15, ("slu",)), answers(0, ("slu",))
    for tolerated, falls in ((0.01, True), (0.2, False)):  # the interval is about [-0.37, -0.15]
        section = params.promote.model_copy(update={"tolerated_falls": {"slu": tolerated}})
        found = check_falls(ours, theirs, params.model_copy(update={"promote": section}), same_llm=True)
        assert bool(failed(found)) is falls


def test_the_comparison_is_paired(params: Params) -> None:
    """Both are wrong on half of the items, the same ones but for four: intervals of each alone would overlap."""
    (check,) = check_falls(answers(34, ("slu",)), answers(30, ("slu",)), params, same_llm=True).checks
    assert -0.15 < float(check.source.partition("[")[2].partition(",")[0]) < -0.1


def test_answers_of_both_are_graded_alike_whatever_was_kept(params: Params) -> None:
    theirs = answers(tasks=("asr",)).assign(counts=[np.array([5.0, 5.0])] * ITEMS)
    (check,) = check_falls(answers(tasks=("asr",)), theirs, params, same_llm=True).checks
    assert check.value == 0.0


def test_what_cannot_be_compared_is_said(params: Params) -> None:
    found = check_falls(
        answers(tasks=("asr", "continuation")), answers(tasks=("slu", "continuation")), params, same_llm=False
    )
    assert found.checks == ()
    assert found.notes == (
        "asr: the champion was never asked it",
        "slu: asked of the champion alone",
        "continuation: its perplexity is that of another LLM than the champion's",
    )


def test_items_are_compared_that_both_were_asked_and_counted(params: Params) -> None:
    theirs = answers(tasks=("slu",)).iloc[20:]
    (check,) = check_falls(answers(tasks=("slu",)), theirs, params, same_llm=True).checks
    assert "on 40 of 60 items" in check.source


@pytest.mark.parametrize("column", ["id", "instruction", "transcript", "reference"])
def test_other_items_or_instructions_are_refused(params: Params, column: str) -> None:
    theirs = answers(tasks=("slu",))
    theirs[column] = theirs[column].astype(str) + " of another corpus"
    with pytest.raises(ValueError, match="of 60 answers to slu only 0 are to what the champion was asked too"):
        check_falls(answers(tasks=("slu",)), theirs, params, same_llm=True)
