"""The stage `ablations`: what one setting at a time does, as a curve a setting: reports/ablations."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from blsp.evaluation import plots
from blsp.evaluation.evaluate import comparisons, figures, measure_answers, tasks_of
from blsp.evaluation.report import cell, task_tables
from blsp.evaluation.resampling import resampling_of
from blsp.evaluation.tasks import heard_languages
from blsp.files import replace_dir, write_json, write_text
from blsp.paper.compare import by_seed, measure_gaps, read_measured
from blsp.params import Params

FOLDER = "reports/ablations"
PANELS_A_ROW = 5
PAGE, JSON = "ablations.md", "ablations.json"
SURE = 0.05  # a difference whose p is below it is marked


def run(params: Params) -> None:
    """Nothing; afterwards reports/ablations holds the page, a picture of each axis, and ablations.json."""
    # All points from the same seeds: those of the variants among them too.
    experiments = params.experiments.model_copy(update={"seeds": params.experiments.ablation_seeds})
    params = params.model_copy(update={"experiments": experiments})
    axes = experiments.axes
    names = list(dict.fromkeys(chain.from_iterable(axes.values())))
    resampling = resampling_of(params.evaluate)
    graded, gaps = read_measured(params, names)
    heard = heard_languages()
    measured = measure_answers(graded, params, heard)
    behaviour = gaps["task"].iloc[0]
    measured += measure_gaps(gaps[gaps["task"] == behaviour])
    reference = next(iter(params.experiments.variants))
    others = [(name, reference) for name in names if name != reference]
    found = {
        "systems": figures(measured, resampling),
        "seeds": by_seed(graded, gaps, params, names, heard),
        "comparisons": comparisons(measured, others, resampling),
        "axes": axes,
        "tasks": tasks_of(measured, graded, heard),
        "reference": reference,
    }
    with replace_dir(FOLDER) as folder:
        for axis in axes:
            _draw(found, axis, folder / f"{axis}.png")
        write_json(folder / JSON, found)
        write_text(folder / PAGE, _page(found, params))
    print("\n\n".join(f"{axis}\n{_table(found, axis)}" for axis in axes))


def _table(found: Mapping[str, Any], axis: str) -> str:
    """A row a point of the axis; a value that differs from the reference's by more than chance has a star."""
    sure = {(one["system"], one["task"], one["metric"]) for one in found["comparisons"] if one["p"] < SURE}
    names = {f"{place:g}": name for name, place in sorted(found["axes"][axis].items(), key=lambda point: point[1])}

    def cell_of(place: str, task: Mapping[str, Any]) -> str:
        name = names[place]
        star = "*" if (name, task["name"], task["metric"]) in sure else ""
        return cell(found["systems"][name][task["name"]][task["metric"]]) + star

    return task_tables(axis, names, found["tasks"], cell_of)


def _page(found: Mapping[str, Any], params: Params) -> str:
    seeds = ", ".join(map(str, params.experiments.seeds))
    lines = [
        "# Ablations",
        "",
        f"One setting at a time, beside `{found['reference']}`. Every point is the mean over the seeds {seeds}, in "
        f"brackets the {params.evaluate.confidence:.0%} bootstrap interval over utterances; a star marks a difference "
        f"from `{found['reference']}` with p below {SURE:g}, on the same utterances by approximate randomisation. "
        "`kl` and `top1_agreement` are the behaviour gap on the continuations, in the languages that training heard.",
    ]
    for axis in found["axes"]:
        lines += ["", f"## {axis}", "", _table(found, axis), "", f"![{axis}]({axis}.png)"]
    return "\n".join(lines) + "\n"


def _draw(found: Mapping[str, Any], axis: str, path: Path) -> None:
    """A panel a task: its metric along the axis, with intervals, and a dot a seed."""
    points = sorted(found["axes"][axis].items(), key=lambda point: point[1])
    tasks = found["tasks"]
    canvas, panels = plots.canvas(len(tasks), PANELS_A_ROW, (2.8, 2.7))
    for panel, task in zip(panels, tasks, strict=True):
        own = [found["systems"][name][task["name"]][task["metric"]] for name, _ in points]
        # Settings are doubled or halved, and may be none: evenly spaced, each by its value.
        plots.intervals(panel, range(len(points)), own, color=plots.SPEECH, marker="o", ms=4, capsize=3, lw=1.2)
        for at, (name, _) in enumerate(points):
            seeds = found["seeds"][name][task["name"]][task["metric"]]
            panel.plot([at] * len(seeds), seeds, ".", color="black", ms=4, zorder=3)
        panel.set_xticks(range(len(points)), [f"{place:g}" for _, place in points], fontsize=8)
        panel.set_title(f"{task['name']}: {plots.judged_by(task['metric'], task['higher_is_better'])}", fontsize=8)
        panel.grid(alpha=0.3, axis="y")
    canvas.supxlabel(axis, fontsize=9)
    plots.save(canvas, path)
