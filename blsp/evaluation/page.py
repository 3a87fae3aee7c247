"""The page to read and to listen to: by task, the items that speech lost most on, and random ones, as one HTML file."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from blsp import pages
from blsp.data.text import sentence_key
from blsp.sampling import sample

PAGE = "reports/answers.html"
QUESTIONS = 48  # in all, half of them random: were each 30 s long, the page would still be below 12 MB
LONGEST_S = 30.0
QUESTION = ["task", "instruction", "condition", "id"]

SamplesOf = Callable[[str, str], tuple[NDArray[np.float32], int]]
"""The samples (N,) of the item with this id, as the systems heard them under this condition, and their rate in Hz."""


class Piece(NamedTuple):
    """Some words of an answer: as in the reference (`same`), not in it (`extra`), or in the reference alone."""

    kind: str
    text: str


@dataclass(frozen=True)
class Systems:
    """Which systems' answers are compared: a question is as bad as `ours` falls behind `against`."""

    ours: str
    against: str


def write_page(
    graded: pd.DataFrame, systems: Systems, samples_of: SamplesOf, path: str | Path = PAGE, about: str = ""
) -> None:
    """Nothing; afterwards `path` shows the graded answers of all systems to the worst and to random questions.

    A row of `graded` is an answer: task, instruction, condition, id, speaker, language, audio_s, transcript,
    reference, system, seed, answer, and its quality from 0 to 1. A question is an item under one instruction and one
    condition. The same data give the same page. `about` is said at its top: where the answers come from.
    """
    worst, random = _chosen(graded, systems)
    tasks = [
        {
            "name": task,
            "summary": _summary(rows, systems),
            "worst": _shown(rows, worst[task], samples_of),
            "random": _shown(rows, random[task], samples_of),
        }
        for task, rows in graded.groupby("task", sort=False)
    ]
    contents = {"tasks": tasks, "systems": systems, "about": about}
    pages.write_page(path, "blsp.evaluation", "answers.html.j2", contents)


def _chosen(graded: pd.DataFrame, systems: Systems) -> tuple[dict[Any, list[Any]], dict[Any, list[Any]]]:
    """The worst and random questions by task: those where ours lost, the most lost first, and others."""
    quality = graded.pivot_table(index=QUESTION, columns="system", values="quality", aggfunc="mean", sort=True)
    size = max(QUESTIONS // 2 // graded["task"].nunique(), 1)
    loss = quality[systems.against] - quality[systems.ours]
    worst: dict[Any, list[Any]] = {}
    for task in graded["task"].unique():
        lost = loss[loss.index.get_level_values("task") == task]
        worst[task] = list(lost[lost > 0].sort_values(ascending=False, kind="stable").index[:size])
    shown = {question for questions in worst.values() for question in questions}
    others = (question for question in loss.index if question not in shown)
    drawn = sample(others, size, group=lambda question: question[0], name=lambda question: tuple(map(str, question)))
    return worst, {task: drawn.get(task, []) for task in worst}


def _summary(rows: pd.DataFrame, systems: Systems) -> dict[str, Any]:
    """How many questions there are, on how many ours lost or won, and each system's mean quality."""
    quality = rows.pivot_table(index=QUESTION, columns="system", values="quality", aggfunc="mean")
    loss = quality[systems.against] - quality[systems.ours]
    order = list(dict.fromkeys(rows["system"]))
    return {
        "questions": len(quality),
        "lost": int((loss > 0).sum()),
        "won": int((loss < 0).sum()),
        "quality": [(system, float(quality[system].mean())) for system in order],
    }


def _shown(rows: pd.DataFrame, questions: Iterable[Any], samples_of: SamplesOf) -> list[dict[str, Any]]:
    """What the page shows of each question."""
    grouped = {question: own for question, own in rows.groupby(QUESTION)}
    return [_article(grouped[question], samples_of) for question in questions]


def _article(rows: pd.DataFrame, samples_of: SamplesOf) -> dict[str, Any]:
    known = rows.iloc[0]
    samples, rate_hz = samples_of(known["id"], known["condition"])
    longest = round(LONGEST_S * rate_hz)
    return {
        **{key: known[key] for key in ("id", "condition", "instruction", "transcript", "audio_s")},
        "reference": _text(known["reference"]),
        "speaker": _text(known["speaker"]),
        "language": _text(known["language"]),
        "is_cut": len(samples) > longest,
        "audio": pages.audio_address(samples[:longest], rate_hz),
        "answers": [
            {
                "system": system,
                "seeds": sorted(same["seed"].tolist()) if own["answer"].nunique() > 1 else [],
                "quality": float(same["quality"].iloc[0]),
                "is_empty": not str(answer),
                "pieces": _pieces(str(answer), _text(known["reference"]), same["quality"].iloc[0]),
            }
            for system, own in rows.groupby("system", sort=False)
            for answer, same in own.groupby("answer", sort=False)
        ],
    }


def _pieces(answer: str, reference: str | None, quality: float) -> list[Piece]:
    """The answer as it is shown: where the metric finds no fault, none is marked."""
    return differences(answer, reference) if reference and quality < 1 else [Piece("same", answer)]


def _text(value: Any) -> str:
    """A value that may be missing in a table, as text."""
    return "" if pd.isna(value) else str(value)


def differences(answer: str, reference: str) -> list[Piece]:
    """The answer in pieces, as it is turned into the reference with the fewest changed words.

    Words are the same where they differ in case and punctuation alone.
    """
    ours, theirs = answer.split(), reference.split()
    pieces: list[Piece] = []
    changes = Levenshtein.opcodes([sentence_key(word) for word in ours], [sentence_key(word) for word in theirs])
    for is_same, run in groupby(changes, key=lambda change: change.tag == "equal"):
        first, *others = run
        last = others[-1] if others else first
        own = " ".join(ours[first.src_start : last.src_end])
        missing = " ".join(theirs[first.dest_start : last.dest_end])
        if is_same:
            pieces.append(Piece("same", own))
            continue
        pieces += [Piece("extra", own)] if own else []
        pieces += [Piece("missing", missing)] if missing else []
    return pieces
