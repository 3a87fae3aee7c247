"""Does the answer change when the instruction does? The paper's charge against ASR pre-training, as two shares.

Each item's answers under the first instruction of each task are held against what the LLM answers to the same
instructions, reading the transcript.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from blsp.data.text import sentence_key
from blsp.evaluation.scores import Measured, summed
from blsp.params import Task

TASK = "instructions"
READER = "text"


def measure_sensitivity(table: pd.DataFrame, tasks: Mapping[str, Task]) -> list[Measured]:
    """`followed` and `changed` of each system; nothing where no item was asked for two things.

    followed: the share of answers nearer (by edits of letters) to the reader's answer to that very instruction than to
    its answer to any other task's; a tie is a miss. changed: the share of pairs of tasks for which the two answers
    differ. Only instructions to which the reader itself gives different answers are counted.
    """
    # Not any task's first instruction: one task's second may be another's first.
    first = {name: task.instructions[0] for name, task in tasks.items()}
    asked = table[table["instruction"] == table["task"].map(first)]
    answers = {
        key: dict(zip(own["task"], map(sentence_key, own["answer"]), strict=True))
        for key, own in asked.groupby(["system", "seed", "id"], sort=False)
    }
    read = {item: given for (system, _, item), given in answers.items() if system == READER}
    rows = [
        {"system": system, "seed": seed, "id": item, "counts": own}
        for (system, seed, item), given in answers.items()
        if (own := _counts(given, read[item])).any()
    ]
    if not rows:
        return []
    counts = summed(pd.DataFrame(rows))
    signature = f"rapidfuzz Levenshtein, plain words|reader:{READER}"
    return [
        Measured(TASK, "followed", True, counts, lambda total: total[0] / total[1], f"followed|{signature}"),
        Measured(TASK, "changed", True, counts, lambda total: total[2] / total[3], f"changed|{signature}"),
    ]


def _counts(given: Mapping[str, str], read: Mapping[str, str]) -> np.ndarray:
    """Answers followed, answers counted, pairs changed, pairs counted (4,) of one item."""
    from rapidfuzz.distance import Levenshtein

    pairs = [pair for pair in combinations(given, 2) if read[pair[0]] != read[pair[1]]]
    changed = sum(given[one] != given[other] for one, other in pairs)
    followed = told_apart = 0
    for task, answer in given.items():
        others = {text for other, text in read.items() if other in given and text != read[task]}
        if others:
            told_apart += 1
            nearest = max(Levenshtein.normalized_similarity(answer, text) for text in others)
            followed += Levenshtein.normalized_similarity(answer, read[task]) > nearest
    return np.array([followed, told_apart, changed, len(pairs)], dtype=float)
