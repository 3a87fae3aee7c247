"""The comparison on paper: one page with its tables and figures, the same as JSON, and the answers to read and hear."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from blsp import markdown
from blsp.evaluation import gap_plots, plots, similarity_plots
from blsp.evaluation import page as answers_page
from blsp.evaluation.clusters import draw_clusters
from blsp.evaluation.report import MEANINGS, PANELS_A_ROW, cell, comparison_table, number, task_tables
from blsp.evaluation.robustness import Panel, draw_conditions, draw_voices
from blsp.evaluation.tasks import test_items
from blsp.files import replace_dir, write_json, write_text
from blsp.paper import provenance
from blsp.params import Params, Train
from blsp.params.training import BASELINES

FOLDER = "reports/paper"
PAGE, JSON, LISTEN = "paper.md", "paper.json", "answers.html"


def write(found: dict[str, Any], graded: pd.DataFrame, clusters: Mapping[str, pd.DataFrame], params: Params) -> None:
    """Nothing; reports/paper then holds the page, its figures, the JSON and the page to read and listen to.

    `clusters` are the points of each variant (blsp.evaluation.clusters).
    """
    first = next(iter(params.experiments.variants))
    items = {item.id: item for item in test_items()}
    with replace_dir(FOLDER) as folder:
        similar = found["similarity"]
        similarity_plots.draw_by_layer(_part(similar, "layers"), folder / "similarity_by_layer.png")
        # In the order of the gaps: JSON has them by their names.
        by_task = {
            name: {task: tasks[task] for task in found["gaps"][name] if task in tasks}
            for name, tasks in _part(similar, "tasks").items()
        }
        similarity_plots.draw_by_task(by_task, folder / "similarity_by_task.png")
        similarity_plots.draw_by_length(_part(similar, "lengths"), folder / "similarity_by_length.png")
        draw_clusters(clusters, {id_: item.intent for id_, item in items.items()}, folder / "clusters.png")
        gap_plots.draw_gap_by_task(found["gaps"], folder / "gap_by_task.png")
        gap_plots.draw_gap_by_length(found["gap_by_length"], folder / "gap_by_length.png")
        _draw_systems(found, folder / "systems.png")
        panels = [Panel(one["task"], one["metric"], one["figures"]) for one in found["conditions"]]
        draw_conditions(panels, params.evaluate.conditions, folder / "conditions.png")
        if voices := _by_voice(found):
            draw_voices(voices, folder / "voices.png")
        answers_page.write_page(
            graded,
            answers_page.Systems(ours=first, against="cascade"),
            lambda id_, condition: items[id_].as_heard,
            folder / LISTEN,
            about=f"Every system of {PAGE}.",
        )
        write_json(folder / JSON, found)
        write_text(folder / PAGE, text(found, params))


def tables(found: Mapping[str, Any]) -> str:
    """All systems on all tasks, and the differences between them, as Markdown tables."""
    return f"{_systems_table(found)}\n\n{comparison_table(found['comparisons'])}"


def _systems_table(found: Mapping[str, Any]) -> str:
    return task_tables(
        "system",
        found["systems"],
        found["tasks"],
        lambda name, task: _cell_of(found, name, task["name"], task["metric"]),
    )


def _cell_of(found: Mapping[str, Any], system: str, task: str, metric: str) -> str:
    """Value and interval, and below a system of several seeds the least and the most of any seed."""
    figure = found["systems"][system][task].get(metric)
    if figure is None:
        return ""
    seeds = found["seeds"].get(system, {}).get(task, {}).get(metric)
    spread = f" ({number(min(seeds), figure)} to {number(max(seeds), figure)})" if seeds and len(seeds) > 1 else ""
    return cell(figure) + spread


def _gaps_table(found: Mapping[str, Any]) -> str:
    names = dict.fromkeys(task for gaps in found["gaps"].values() for task in gaps)
    tasks = [{"name": name, "metric": "KL, top-1", "heard": name not in _unheard(found)} for name in names]

    def cell_of(name: str, task: Mapping[str, Any]) -> str:
        own = found["gaps"][name][task["name"]]
        return f"{cell(own['kl'])}, {cell(own['top1_agreement'])}"

    return task_tables("system", found["gaps"], tasks, cell_of)


def _part(similarity: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {system: own[name] for system, own in similarity.items()}


def _unheard(found: Mapping[str, Any]) -> set[str]:
    """The tasks on speech in languages that training never heard."""
    return {task["name"] for task in found["tasks"] if not task["heard"]}


def text(found: Mapping[str, Any], params: Params) -> str:
    """The page, as Markdown."""
    seeds = ", ".join(map(str, params.experiments.seeds))
    changed = {name: _changes(own, params.train) for name, own in params.experiments.variants.items()}
    lines = [
        "# The comparison",
        "",
        f"Every trained system is the mean over the seeds {seeds}, in brackets the {params.evaluate.confidence:.0%} "
        "bootstrap interval over utterances, then the least and the most of any seed. `followed` is the share of "
        "answers that are nearer to what the LLM answers to that instruction, reading the transcript, than to what "
        "it answers to another; `changed` the share of pairs of instructions with different answers.",
        "",
        _systems_table(found),
        "",
        *(f"- `{name}`: {MEANINGS[name]}" for name in BASELINES),
        *(f"- `{name}`: trained with {what}{_copied(params, name)}" for name, what in changed.items()),
        "",
        "![systems](systems.png)",
        "",
        "## Which differences are more than chance",
        "",
        "On the same utterances, answers of all seeds pooled; p is of approximate randomisation, two-sided.",
        "",
        comparison_table(found["comparisons"]),
        "",
        "## The gap between hearing and reading",
        "",
        "KL(text || speech) in nats a token, then the share of tokens that are the most likely in both, along what "
        "the LLM answers to the transcript; `continuation` in the languages that training heard.",
        "",
        _gaps_table(found),
        "",
        "![gap by task](gap_by_task.png)",
        f"![gap by length of the audio, {next(iter(changed))}](gap_by_length.png)",
        "",
        "How alike the LLM's states are (the first seed of each): along continuations by layer, then in its last layer "
        "by task, and along continuations by length; continuations in the languages that training heard.",
        "",
        "![similarity of states by layer](similarity_by_layer.png)",
        "![similarity of states by task](similarity_by_task.png)",
        "![similarity of states by length of the audio](similarity_by_length.png)",
        "",
        "Where the same utterances lie in the last layer, each in the colour of its intent:",
        "",
        "![clusters of utterances](clusters.png)",
        "",
        "## Worse audio",
        "",
        "The pipeline's own adapter (`speech`) and the cascade, under the first instruction of each task; the "
        "difference is speech less cascade, on the same utterances.",
        "",
        _conditions_table(found),
        "",
        "![worse audio](conditions.png)",
        "",
        *_voices(found),
        f"The answers, to read and to hear: [{LISTEN}]({LISTEN}).",
        "",
        "## Instructions",
        "",
        *(f"- {name}: {' / '.join(given)}" for name, given in found["instructions"].items()),
        "",
        "## Where the numbers come from",
        "",
        *provenance.lines(found["provenance"]),
        "",
        "## Signatures",
        "",
        *(
            f"- {task}.{metric}: n={figure['n']} `{figure['signature']}`"
            for task, metrics in found["systems"][next(iter(changed))].items()
            for metric, figure in metrics.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _conditions_table(found: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{one['task']} ({one['metric']})",
            tested["condition"],
            *(cell(one["figures"][system][tested["condition"]]) for system in ("cascade", "speech")),
            cell(tested, "+"),
            f"{tested['p']:.3f}",
        ]
        for one in found["conditions"]
        for tested in one["differences"]
    ]
    return markdown.table(["task", "condition", "cascade", "speech", "difference", "p"], rows)


def _by_voice(found: Mapping[str, Any]) -> list[Panel]:
    shown = [one for one in found["conditions"] if one["voices"] and one["task"] not in _unheard(found)]
    return [Panel(one["task"], one["metric"], one["voices"]) for one in shown]


def _voices(found: Mapping[str, Any]) -> list[str]:
    what = (
        "The same by voice, on clean audio in the languages that training heard, with the number of utterances (the "
        "voices with most of them):"
    )
    return [what, "", "![voices](voices.png)", ""] if _by_voice(found) else []


def _changes(variant: Train, train: Train) -> str:
    changed = {key: value for key, value in variant.model_dump().items() if value != getattr(train, key)}
    return ", ".join(f"`{key}: {value}`" for key, value in changed.items()) or "`train` as it is"


def _copied(params: Params, name: str) -> str:
    """What is learned by a variant that hears the LLM's copies of transcripts alone; nothing of any other."""
    own, written = params.experiments.variants[name], params.continuations
    if any(share > 0 and written.behaviours[part].answer != "copy" for part, share in own.shares.items()):
        return ""
    loss = {"ce": "cross-entropy on", "kd": "KL along"}[own.objective]
    kept = f"kept only where within {written.quality.copy_distance:.0%} of its letters"
    return f": {loss} the LLM's own repetitions of the transcript, {kept}"


def _draw_systems(found: Mapping[str, Any], path: Path) -> None:
    """A panel a task: each system a bar with its interval, and a dot a seed."""
    from matplotlib import colormaps

    tasks, systems = found["tasks"], list(found["systems"])
    canvas, axes = plots.canvas(len(tasks), PANELS_A_ROW, (3.4, 3.4))
    for axis, task in zip(axes, tasks, strict=True):
        for place, system in enumerate(systems):
            figure = found["systems"][system][task["name"]][task["metric"]]
            plots.bar(axis, place, figure, colormaps["tab10"](place))
            seeds = found["seeds"].get(system, {}).get(task["name"], {}).get(task["metric"], [])
            axis.plot([place] * len(seeds), seeds, ".", color="black", ms=5)
        axis.set_xticks(range(len(systems)), systems, rotation=35, ha="right", fontsize=8)
        if task["metric"] == "perplexity":
            axis.set_yscale("log")
        axis.set_title(f"{task['name']}: {plots.judged_by(task['metric'], task['higher_is_better'])}", fontsize=9)
    plots.save(canvas, path)
