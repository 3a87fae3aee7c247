"""The evaluation on paper: one JSON file, one table, and figures."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blsp import markdown
from blsp.evaluation import plots
from blsp.files import replace_dir, write_json, write_text

JSON = "reports/evaluation.json"
MARKDOWN = "reports/evaluation.md"
FIGURES = "reports/figures"
TRAIN_LOG = "reports/train_log.jsonl"
UNHEARD = "On speech in languages that training never heard:"
PANELS_A_ROW = 4
PANEL_IN = (3.1, 3.2)  # inches, width and height
MEANINGS = {
    "text": "the LLM reads the true transcript: the ceiling",
    "cascade": "the speech model's own transcript, then the LLM",
    "speech": "the LLM hears the speech through the trained adapter",
    "untrained": "the LLM hears the speech through a fresh adapter: the floor",
}
COLOURS = {"text": "#4c6a92", "cascade": "#8fb0c6", "speech": plots.SPEECH, "untrained": "#b9b9b9"}


def write(evaluation: dict[str, Any]) -> None:
    """Nothing; reports/ then holds the evaluation as JSON, as a table and as figures."""
    with replace_dir(FIGURES) as folder:
        _draw_systems(evaluation, folder / "systems.png")
        _draw_curve(folder / "learning_curve.png")
    write_json(JSON, evaluation)
    write_text(MARKDOWN, _page(evaluation))


def table(evaluation: dict[str, Any]) -> str:
    """The systems by the tasks, each cell a value and its interval, as a Markdown table."""
    systems = {name: own for name in MEANINGS if (own := evaluation["systems"].get(name))}
    figures = task_tables(
        "system", systems, evaluation["tasks"], lambda name, task: cell(systems[name][task["name"]][task["metric"]])
    )
    gap = evaluation["alignment"]
    if not gap:
        return f"{figures}\n\nNo behaviour gap: no test utterance is in a language that training heard."
    closing = (
        f"Behaviour gap on speech against text, in the languages that training heard: KL {cell(gap['kl'])} nats a "
        f"token, top-1 agreement {cell(gap['top1_agreement'])}."
    )
    return f"{figures}\n\n{closing}"


def task_tables(
    corner: str,
    rows: Iterable[str],
    tasks: Sequence[Mapping[str, Any]],
    cell_of: Callable[[str, Mapping[str, Any]], str],
) -> str:
    """A Markdown table of these rows by the tasks, then one of the tasks in languages that training never heard."""

    def part(some: Sequence[Mapping[str, Any]]) -> str:
        header = [corner, *(f"{task['name']} ({task['metric']})" for task in some)]
        return markdown.table(header, [[row, *(cell_of(row, task) for task in some)] for row in rows])

    heard, unheard = ([task for task in tasks if task["heard"] is kind] for kind in (True, False))
    parts = [part(heard)] if heard else []
    return "\n\n".join([*parts, UNHEARD, part(unheard)] if unheard else parts)


def comparison_table(comparisons: list[dict[str, Any]]) -> str:
    """Each difference with its interval and p, as a Markdown table."""
    rows = [
        [f"{one['system']} - {one['than']}", f"{one['task']} ({one['metric']})", cell(one, "+"), f"{one['p']:.3f}"]
        for one in comparisons
    ]
    return markdown.table(["systems", "task", "difference", "p"], rows)


def cell(figure: Mapping[str, Any], sign: str = "") -> str:
    """`0.887 [0.851, 0.921]`: a figure or a difference with its interval; one digit where it is a percentage."""
    value, low, high = (number(figure[key], figure, sign) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def number(value: float, figure: Mapping[str, Any], sign: str = "") -> str:
    """The value with as many digits as the figure's own."""
    digits = 1 if max(abs(figure[key]) for key in ("value", "low", "high")) > 5 else 3
    return f"{value:{sign}.{digits}f}"


def _page(evaluation: dict[str, Any]) -> str:
    test = evaluation["test"]
    lines = [
        "# Evaluation",
        "",
        f"{test['utterances']} test utterances ({test['audio_s'] / 60:.1f} minutes); their sentences and voices are "
        "in no training data. Intervals are 95 % bootstrap intervals over utterances.",
        "",
        table(evaluation),
        "",
        *(f"- `{system}`: {meaning}" for system, meaning in MEANINGS.items()),
        "",
        "`followed` is the share of answers that are nearer to what the LLM answers to that instruction, reading the "
        "transcript, than to what it answers to another; `changed` the share of pairs of instructions with "
        "different answers.",
        "",
        "![systems](figures/systems.png)",
        "![learning curve](figures/learning_curve.png)",
        "",
        "## Differences on the same utterances",
        "",
        "p is that of approximate randomisation, two-sided: how often a difference as large comes about where a coin "
        "decides, for each utterance, which system gave which answer.",
        "",
        comparison_table(evaluation["comparisons"]),
        "",
        *_judge(evaluation["judge"]),
        "## Instructions",
        "",
        *(f"- {name}: {' / '.join(given)}" for name, given in evaluation["instructions"].items()),
        "",
        "## Examples",
        "",
    ]
    for example in evaluation["examples"]:
        lines.append(f"**{example['task']}** `{example['id']}`: {example['reference'] or 'any wording'}")
        lines += [f"- {system}: {example[system]}" for system in evaluation["systems"]] + [""]
    lines += ["## Signatures", ""]
    for name, figures in evaluation["systems"]["speech"].items():
        lines += [f"- {name}.{metric}: n={figure['n']} `{figure['signature']}`" for metric, figure in figures.items()]
    lines += [f"- {name}: n={figure['n']} `{figure['signature']}`" for name, figure in evaluation["alignment"].items()]
    return "\n".join(lines) + "\n"


def _judge(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    aspects = list(next(iter(found["figures"].values()), {}))
    rows = [[system, *(cell(own[aspect]) for aspect in aspects)] for system, own in found["figures"].items()]
    asked = f"{found['questions']} questions, of which {len(found['unreadable'])} replies could not be read"
    return [
        "## What the judge says",
        "",
        f"Grades from 1 to 5; {asked}.",
        "",
        markdown.table(["system", *aspects], rows),
        "",
    ]


def _draw_systems(evaluation: dict[str, Any], path: Path) -> None:
    systems = {name: evaluation["systems"][name] for name in MEANINGS if name in evaluation["systems"]}
    tasks = evaluation["tasks"]
    figure, axes = plots.canvas(len(tasks), PANELS_A_ROW, PANEL_IN)
    for axis, task in zip(axes, tasks, strict=True):
        for place, (system, figures) in enumerate(systems.items()):
            own = figures[task["name"]][task["metric"]]
            plots.bar(axis, place, own, COLOURS[system])
            text, top = f"{own['value']:.3g}", (place, own["high"])
            axis.annotate(text, top, (0, 3), textcoords="offset points", ha="center", fontsize=8)
        axis.set_xticks(range(len(systems)), list(systems), fontsize=8)
        axis.set_title(f"{task['name']}\n{plots.judged_by(task['metric'], task['higher_is_better'])}", fontsize=9)
        axis.margins(y=0.12)
        if task["metric"] == "perplexity":  # a fresh adapter's is thousands of times the others'
            axis.set_yscale("log")
    plots.save(figure, path)


def _draw_curve(path: Path) -> None:
    records = [json.loads(line) for line in Path(TRAIN_LOG).read_text(encoding="utf-8").splitlines()]
    figure, axes = plots.canvas(3, PANELS_A_ROW, PANEL_IN)
    for axis, key, title in zip(
        axes,
        ("loss", "dev_kl", "dev_top1"),
        (
            "training loss\nper response token",
            "dev: KL of text and speech\nnats a token",
            "dev: top-1 agreement\nspeech with text",
        ),
        strict=True,
    ):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            marker = "o" if len(points) < 30 else None
            axis.plot(*zip(*points, strict=True), color=plots.SPEECH, marker=marker, ms=3)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    plots.save(figure, path)
