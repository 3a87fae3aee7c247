"""From answers to figures: counts over instructions and seeds, and the same items for all systems."""

import numpy as np
import pandas as pd
import pytest

from blsp.errors import BlspError
from blsp.evaluation.resampling import Resampling
from blsp.evaluation.scores import grade, measure, metrics_of, without_words
from blsp.evaluation.sensitivity import measure_sensitivity
from blsp.params import Task

RESAMPLING = Resampling(50, 0.95, 1)


def task(reference, metric, *instructions, drop=None):
    return Task(
        instructions=list(instructions), reference=reference, metric=metric, drop=drop, language=None, source=None
    )


TASKS = {
    "asr": task("transcript", "wer", "Repeat.", "Say it again."),
    "qa": task("answer", "accuracy", "Answer.", drop="The answer is"),
}


def row(system, name, instruction, item, answer, reference, seed=1):
    return {
        **{"system": system, "seed": seed, "condition": "clean", "task": name, "instruction": instruction},
        **{"id": item, "language": "en", "speaker": None, "audio_s": 1.0, "transcript": "buy tea please"},
        **{"reference": reference, "answer": answer},
    }


def answered(system, repeated, answer, seed=1):
    return [
        *(row(system, "asr", asked, "1", repeated, "buy tea please", seed) for asked in TASKS["asr"].instructions),
        row(system, "qa", "Answer.", "1", answer, "tea", seed),
        row(system, "qa", "Answer.", "2", "milk", "milk", seed),
    ]


def measured(rows, tasks=TASKS):
    graded = grade(pd.DataFrame(rows), tasks, "whisper")
    found = measure(graded, tasks, metrics_of(graded, tasks, "whisper"))
    return graded, {one.task: one for one in found}


def test_an_items_answers_under_all_instructions_count_as_one_item():
    graded, found = measured(answered("speech", "Buy tea.", "The answer is tea."))
    wer = found["asr"].figure("speech", RESAMPLING)
    assert wer["value"] == pytest.approx(2 / 6) and wer["n"] == 1
    assert wer["signature"].startswith("wer|jiwer") and "|instructions:2" in wer["signature"]
    right = found["qa"].figure("speech", RESAMPLING)
    assert right["value"] == 1 and right["n"] == 2 and "|without:The answer is" in right["signature"]
    assert graded["quality"].tolist() == pytest.approx([2 / 3, 2 / 3, 1, 1])


def test_a_system_of_three_seeds_is_tested_against_one_of_one():
    rows = [one for seed, given in enumerate(("tea", "tea", "ink")) for one in answered("ce", "buy", given, seed)]
    _, found = measured([*rows, *answered("text", "buy tea please", "tea")])
    qa = found["qa"]
    assert qa.figure("ce", RESAMPLING)["value"] == pytest.approx(5 / 6)
    assert qa.counts["text"].sum(0).tolist() == qa.counts["ce"].sum(0).tolist()[1:] * 2 == [6, 6]
    assert qa.difference("ce", "text", RESAMPLING)["value"] == pytest.approx(-1 / 6)


def test_systems_that_answered_other_items_are_not_compared():
    with pytest.raises(ValueError, match="different items"):
        measured([*answered("text", "buy", "tea"), row("speech", "qa", "Answer.", "1", "tea", "tea")])


def sensitivity(answers):
    rows = [
        row(system, name, TASKS[name].instructions[0], "1", answer, "-")
        for system, given in answers.items()
        for name, answer in zip(TASKS, given, strict=True)
    ]
    found = {one.metric: one for one in measure_sensitivity(pd.DataFrame(rows), TASKS)}
    return {
        system: tuple(found[name].figure(system, RESAMPLING)["value"] for name in ("followed", "changed"))
        for system in answers
    }


def test_a_system_that_always_repeats_follows_one_instruction_of_two_and_changes_nothing():
    found = sensitivity(
        {
            "text": ("buy tea please", "The answer is tea."),
            "deaf": ("buy tea please", "buy tea please"),
            "speech": ("buy the tea please", "The answer is two."),
            "noise": ("x", "y"),
        }
    )
    assert found == {"text": (1, 1), "deaf": (0.5, 0), "speech": (1, 1), "noise": (0, 1)}


def test_instructions_that_the_reader_answers_alike_ask_for_no_change():
    rows = [row("text", name, TASKS[name].instructions[0], "1", "tea", "-") for name in TASKS]
    assert measure_sensitivity(pd.DataFrame(rows), TASKS) == []


def test_counts_are_in_the_order_of_the_items_whatever_the_order_of_rows():
    rows = answered("text", "buy tea please", "ink")
    _, forwards = measured(rows)
    _, backwards = measured(rows[::-1])
    assert np.array_equal(forwards["qa"].counts["text"], backwards["qa"].counts["text"])


def test_instructions_of_a_task_that_are_another_tasks_first_do_not_count_for_it():
    """`st` is asked what `say` is asked first: of `st` its own first instruction counts."""
    tasks = {"st": task("translation", "bleu", "Translate.", "Say."), "say": task("transcript", "wer", "Say.")}
    rows = [
        row(system, name, asked, "1", answer, "-")
        for system, wrong in (("text", "sage"), ("speech", "nichts"))
        for name, asked, answer in (("st", "Translate.", "kaufe Tee"), ("st", "Say.", wrong), ("say", "Say.", "sage"))
    ]
    followed = next(one for one in measure_sensitivity(pd.DataFrame(rows), tasks) if one.metric == "followed")
    assert followed.figure("speech", RESAMPLING)["value"] == 1


def test_items_whose_reference_has_no_words_are_left_out():
    um = [
        row(system, "asr", asked, "3", "um", "Um.")
        for system in ("text", "speech")
        for asked in ("Repeat.", "Say it again.")
    ]
    rows = [*answered("text", "buy tea please", "tea"), *answered("speech", "buy", "tea"), *um]
    assert without_words(pd.DataFrame(rows), TASKS, "whisper").sum() == len(um)
    graded, found = measured(rows)
    assert found["asr"].figure("speech", RESAMPLING)["n"] == 1 and not graded["quality"].isna().any()
    graded, found = measured([*um, *(one for one in rows if one["task"] == "qa")])
    assert set(found) == {"qa"}, "nothing is left of the task"
    with pytest.raises(BlspError, match="no reference of any task has words"):
        measured(um)
