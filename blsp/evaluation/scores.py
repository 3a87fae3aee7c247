"""From the table of answers to figures: each answer is counted, and counts are summed over items, never averaged.

Axes: I items, K counts of a metric.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from blsp.data.text import Setting, normalizer_of_all, plain_words
from blsp.errors import BlspError
from blsp.evaluation.metrics import ON_NORMALISED, Metric, new_metric, without
from blsp.evaluation.resampling import Compute, Difference, Figure, Resampling, bootstrap, difference
from blsp.params import Task


@dataclass(frozen=True, eq=False)
class Measured:
    """What one metric of one task counted: for every system, counts (I, K) of the same items in the same order.

    An item's counts are summed over the instructions it was asked under, and over the seeds of the system.
    """

    task: str
    metric: str
    higher_is_better: bool
    counts: Mapping[str, np.ndarray]
    compute: Compute
    signature: str

    def figure(self, system: str, resampling: Resampling) -> Figure:
        """The system's value, with its interval."""
        return bootstrap(self.counts[system], self.compute, resampling, self.signature)

    def difference(self, ours: str, theirs: str, resampling: Resampling) -> Difference:
        """How much more one system has than another, tested on the same items."""
        return difference(self.counts[ours], self.counts[theirs], self.compute, resampling)


def metrics_of(table: pd.DataFrame, tasks: Mapping[str, Task], setting: Setting) -> dict[str, Metric]:
    """The metric of each task that the table has answers to; `setting` is corpus.normalizer."""
    asked = {name: table[table["task"] == name] for name in tasks}
    return {
        name: new_metric(
            tasks[name].metric,
            normalizer_of_all(own["language"].unique(), setting),
            sorted(own["reference"].dropna().unique()),
        )
        for name, own in asked.items()
        if len(own)
    }


def without_words(table: pd.DataFrame, tasks: Mapping[str, Task], setting: Setting) -> "pd.Series[bool]":
    """Which rows of the table cannot be scored: no word of their reference ("um") is left by the task's normaliser."""
    found: list[Any] = []
    for name, task in tasks.items():
        own = table[table["task"] == name]
        if len(own) and task.metric in ON_NORMALISED:
            normalizer = normalizer_of_all(own["language"].unique(), setting)
            found += [row for row, reference in own["reference"].items() if not plain_words(reference, normalizer)]
    return table.index.to_series().isin(found)


def grade(table: pd.DataFrame, tasks: Mapping[str, Task], setting: Setting) -> pd.DataFrame:
    """The table with the columns `counts` and `quality` of each answer (blsp.evaluation.metrics), task by task.

    Answers to references without words are left out (`without_words`). Perplexity is not counted here: its counts are
    in the table (blsp.evaluation.perplexity). Raises BlspError where nothing is left.
    """
    parts = []
    table = table[~without_words(table, tasks, setting)]
    if table.empty:
        raise BlspError("no answer can be scored: no reference of any task has words; see corpus.normalizer")
    for name, metric in metrics_of(table, tasks, setting).items():
        own = table[table["task"] == name].copy()
        if metric.count is not None:
            answers = [without(tasks[name].drop, answer) for answer in own["answer"]]
            counts = [metric.count(*pair) for pair in zip(answers, own["reference"], strict=True)]
            own["counts"] = pd.Series(counts, index=own.index, dtype=object)
        own["quality"] = [metric.quality(row) for row in own["counts"]]
        parts.append(own)
    return pd.concat(parts, ignore_index=True)


def measure(graded: pd.DataFrame, tasks: Mapping[str, Task], metrics: Mapping[str, Metric]) -> list[Measured]:
    """Each task's metric over the graded table, in the tasks' order."""
    found = []
    for name, metric in metrics.items():
        task = tasks[name]
        dropped = f"|without:{task.drop}" if task.drop else ""
        found.append(
            Measured(
                task=name,
                metric=metric.name,
                higher_is_better=metric.higher_is_better,
                counts=summed(graded[graded["task"] == name]),
                compute=metric.compute,
                signature=f"{metric.signature}{dropped}|instructions:{len(task.instructions)}",
            )
        )
    return found


def summed(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """By system, the counts (I, K) summed over all rows of an item, items in the order of their ids.

    Raises ValueError where systems were not asked the same of the same items: their figures could not be compared.
    """
    counts, items = {}, {}
    seeds = {str(system): own["seed"].nunique() for system, own in rows.groupby("system")}
    for system, own in rows.groupby("system", sort=False):
        ids, places = np.unique(own["id"], return_inverse=True)
        total = np.zeros((len(ids), len(own["counts"].iloc[0])))
        np.add.at(total, places, np.stack(own["counts"].to_list()))
        # A system of one seed counts as often as one of three: only then can tests swap their answers.
        counts[str(system)] = total * (math.lcm(*seeds.values()) // seeds[str(system)])
        items[str(system)] = ids.tolist()
    if len({tuple(ids) for ids in items.values()}) > 1:
        raise ValueError(f"systems answered different items: { ({name: len(ids) for name, ids in items.items()}) }")
    return counts
