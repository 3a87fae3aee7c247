"""The stage `paper`: all variants, measured one by one before, and the baselines, side by side on one page."""

from collections.abc import Sequence, Set
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pandas as pd

from blsp.evaluation.answers import CLEAN, read_answers
from blsp.evaluation.evaluate import ANSWERS as BASELINES
from blsp.evaluation.evaluate import comparisons, figures, measure_answers, tasks_of
from blsp.evaluation.gap import UtteranceGap, gap_by_length
from blsp.evaluation.resampling import Resampling, resampling_of
from blsp.evaluation.robustness import figures_by, measured_by
from blsp.evaluation.scores import Measured, grade, metrics_of, summed
from blsp.evaluation.tasks import heard_languages
from blsp.files import read_json
from blsp.paper import page
from blsp.paper.measure import ANSWERS, CLUSTERS, GAPS, SIMILARITY, places_of_all
from blsp.paper.provenance import provenance
from blsp.paper.robustness import ANSWERS as ROBUSTNESS
from blsp.paper.robustness import judged_tasks
from blsp.params import Params

VOICES = 30  # those with most utterances, where a test set has more


def run(params: Params) -> None:
    """Nothing; afterwards reports/paper holds the page, its figures, paper.json and the answers to read and hear."""
    names, settings = list(params.experiments.variants), params.evaluate
    resampling = resampling_of(settings)
    graded, gaps = read_measured(params, names)
    first_folders = {name: Path(str(places_of_all(params, name)[0].measured)) for name in names}
    heard = heard_languages()
    judged, gapped = measure_answers(graded, params, heard), measure_gaps(gaps)
    found = {
        "systems": figures(judged, resampling),
        "gaps": figures(gapped, resampling),
        "seeds": by_seed(graded, gaps, params, names, heard),
        "comparisons": comparisons([*judged, *gapped], params.experiments.compared, resampling),
        "gap_by_length": lengths(gaps, params, resampling),
        "similarity": {name: read_json(own / SIMILARITY) for name, own in first_folders.items()},
        "tasks": tasks_of(judged, graded, heard),
        "instructions": {name: task.instructions for name, task in settings.tasks.items()},
        "provenance": provenance(params, names),
    }
    worse = grade(read_answers(ROBUSTNESS, "blsp robustness"), judged_tasks(params), params.corpus.normalizer)
    found["conditions"] = worse_audio(worse, params, resampling)
    clusters = {name: pd.read_parquet(own / CLUSTERS) for name, own in first_folders.items()}
    page.write(found, graded, clusters, params)
    print(page.tables(found))


def read_measured(params: Params, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The graded answers of these variants from all seeds and of the baselines, and the variants' gaps."""
    trained = list(chain.from_iterable(places_of_all(params, name) for name in names))
    folders = {Path(str(places.measured)): f"blsp measure {places.options}" for places in trained}
    own = [read_answers(folder / ANSWERS, command) for folder, command in folders.items()]
    answers = pd.concat([baselines(), *own], ignore_index=True)
    gaps = pd.concat([pd.read_parquet(folder / GAPS) for folder in folders], ignore_index=True)
    return grade(answers, params.evaluate.tasks, params.corpus.normalizer), gaps


def baselines() -> pd.DataFrame:
    """The answers of the systems that no variant trains: those of the stage `evaluate`, but for its own adapter's."""
    answers = read_answers(BASELINES, "blsp evaluate").drop(columns="quality")
    return answers[answers["system"] != "speech"]


def worse_audio(graded: pd.DataFrame, params: Params, resampling: Resampling) -> list[dict[str, Any]]:
    """{"task", "metric", "figures": {system: {condition: figure}}, "differences": [...], "voices": ...} of each task.

    A difference is speech less cascade under a condition, on the same utterances. `voices` is {system: {speaker:
    figure}} on clean audio, of the VOICES with most utterances; empty where nobody knows who speaks.
    """
    clean = graded[graded["condition"] == CLEAN]
    found = []
    for task, metric in metrics_of(graded, judged_tasks(params), params.corpus.normalizer).items():
        by_condition = measured_by("condition", graded, task, metric)
        said = clean.loc[clean["task"] == task, "speaker"].value_counts()
        voices = measured_by("speaker", clean[clean["speaker"].isin(said.index[:VOICES])], task, metric)
        found.append(
            {
                "task": task,
                "metric": metric.name,
                "figures": figures_by(by_condition, resampling),
                "differences": [
                    {"condition": condition, **measured.difference("speech", "cascade", resampling)}
                    for condition, measured in by_condition.items()
                ],
                "voices": figures_by(voices, resampling),
            }
        )
    return found


def measure_gaps(gaps: pd.DataFrame) -> list[Measured]:
    """The behaviour gap of the variants on each task: KL in nats a token, and the share of tokens they agree on."""
    found = []
    for task, rows in gaps.groupby("task", sort=False):
        for metric, column, higher in (("kl", "kl", False), ("top1_agreement", "agreement", True)):
            counts = rows.assign(counts=list(rows[[column, "tokens"]].to_numpy(dtype=float)))
            found.append(
                Measured(
                    task=str(task),
                    metric=metric,
                    higher_is_better=higher,
                    counts=summed(counts),
                    compute=lambda total: total[0] / total[1],
                    signature=f"{metric}|speech against text, the same response|temperature:1",
                )
            )
    return found


def by_seed(
    graded: pd.DataFrame, gaps: pd.DataFrame, params: Params, names: Sequence[str], heard: Set[str | None]
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """{variant: {task: {metric: a value a seed}}} of these variants, seeds in the order of experiments.seeds."""

    def each_alone(table: pd.DataFrame) -> pd.DataFrame:
        alone = table["system"] + "-" + table["seed"].astype(str)
        return table.assign(system=table["system"].where(~table["system"].isin(names), alone))

    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for one in (*measure_answers(each_alone(graded), params, heard), *measure_gaps(each_alone(gaps))):
        for name in names:
            totals = [one.counts[f"{name}-{seed}"].sum(0) for seed in params.experiments.seeds]
            found.setdefault(name, {}).setdefault(one.task, {})[one.metric] = [float(one.compute(t)) for t in totals]
    return found


def lengths(gaps: pd.DataFrame, params: Params, resampling: Resampling) -> dict[str, list[dict[str, Any]]]:
    """{task: the gap in bins of the audio's length, shortest first} of the first variant, over all its seeds."""
    own = gaps[gaps["system"] == next(iter(params.experiments.variants))]
    found = {}
    for task, rows in own.groupby("task", sort=False):
        totals = rows.groupby(["id", "samples"], as_index=False)[["kl", "agreement", "tokens"]].sum()
        utterances = cast(list[UtteranceGap], totals.to_dict("records"))
        rate_hz = params.corpus.sampling_rate_hz
        found[str(task)] = gap_by_length(utterances, rate_hz, resampling, str(task))
    return found
