"""How much the systems bear: their figures in every condition side by side, and by the voice that speaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from blsp.evaluation import plots
from blsp.evaluation.answers import CLEAN
from blsp.evaluation.metrics import Metric
from blsp.evaluation.resampling import Figure, Resampling
from blsp.evaluation.scores import Measured, summed
from blsp.params import Condition

STYLES = {"cascade": ("#4c8fb0", "s"), "speech": (plots.SPEECH, "o"), "untrained": ("#8a8a8a", "^")}
OTHERS = (("#edae49", "D"), ("#6a4c93", "v"), ("#00798c", "P"))


@dataclass(frozen=True)
class Panel:
    """What one panel shows: the figures {system: {condition or voice: figure}}, and what they are called."""

    title: str
    metric: str
    figures: Mapping[str, Mapping[str, Figure]]


def measured_by(key: str, graded: pd.DataFrame, task: str, metric: Metric) -> dict[str, Measured]:
    """What was measured of the graded answers to a task, by the values of the key: `condition` or `speaker`.

    Rows without a value are left out.
    """
    own = graded[graded["task"] == task]
    return {
        str(value): Measured(
            task=task,
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            counts=summed(rows),
            compute=metric.compute,
            signature=f"{metric.signature}|{key}:{value}",
        )
        for value, rows in own.groupby(key, sort=False)
    }


def figures_by(groups: Mapping[str, Measured], resampling: Resampling) -> dict[str, dict[str, Figure]]:
    """{system: {value of the key: figure}}. Intervals are over the items of each group."""
    figures: dict[str, dict[str, Figure]] = {}
    for value, measured in groups.items():
        for system in measured.counts:
            figures.setdefault(system, {})[value] = measured.figure(system, resampling)
    return figures


def draw_conditions(panels: Sequence[Panel], conditions: Mapping[str, Condition], path: Path) -> None:
    """Nothing; a picture with a row of points a panel: clean audio, then noise from soft to loud, then all else.

    Points of one kind of noise are joined, since they lie on a scale. A system measured on clean audio alone (the
    LLM reading the true transcript) is a dashed line.
    """
    measured = {name for panel in panels for figures in panel.figures.values() for name in figures}
    noisy: dict[str, list[str]] = {}
    for name, condition in conditions.items():
        if condition.snr_db is not None and name in measured:
            noisy.setdefault(condition.kind, []).append(name)
    series = [sorted(names, key=lambda name: -(conditions[name].snr_db or 0)) for names in noisy.values()]
    others = [name for name, condition in conditions.items() if condition.snr_db is None and name in measured]
    order = [CLEAN, *(name for names in series for name in names), *others]
    joined = [[CLEAN, *names] for names in series]
    _draw(panels, order, joined, {name: _caption(name, conditions.get(name)) for name in order}, path)


def draw_voices(panels: Sequence[Panel], path: Path) -> None:
    """Nothing; a picture of the figures by voice: first the one on which the first panel's last system is best."""
    *_, last = panels[0].figures.values()
    sign = 1 if panels[0].metric in ("wer", "cer") else -1
    order = sorted(last, key=lambda voice: (sign * last[voice]["value"], voice))
    _draw(panels, order, [], {voice: f"{voice} ({last[voice]['n']})" for voice in order}, path)


def _draw(
    panels: Sequence[Panel], order: list[str], joined: list[list[str]], captions: Mapping[str, str], path: Path
) -> None:
    canvas, axes = plots.canvas(len(panels), 1, (max(0.62 * len(order), 4), 2.3), (1.2, 0.9), sharex=True)
    at = {name: position for position, name in enumerate(order)}
    for axis, panel in zip(axes, panels, strict=True):
        free = iter(OTHERS * len(panel.figures))
        points = {name: some for name, some in panel.figures.items() if set(some) & set(order) != {CLEAN}}
        for place, (system, figures) in enumerate(points.items()):
            colour, marker = STYLES.get(system) or next(free)
            shift = (place - (len(points) - 1) / 2) * 0.16
            shown = [name for name in order if name in figures]
            x, own = [at[name] + shift for name in shown], [figures[name] for name in shown]
            style = {"color": colour, "fmt": marker, "ms": 5, "capsize": 2, "lw": 1, "zorder": 3}
            plots.intervals(axis, x, own, label=system, **style)
            for names in joined:
                line = [name for name in names if name in figures]
                axis.plot([at[n] + shift for n in line], [figures[n]["value"] for n in line], color=colour, lw=1.2)
        for system in panel.figures.keys() - points.keys():
            value = panel.figures[system][CLEAN]["value"]
            axis.axhline(value, color="black", ls="--", lw=1, label=f"{system} (no audio)")
        axis.set_title(f"{panel.title}: {plots.judged_by(panel.metric, panel.metric != 'wer')}", fontsize=9, loc="left")
        axis.grid(alpha=0.3, axis="y")
        axis.margins(y=0.08)
        if panel.metric == "accuracy":
            axis.set_ylim(min(axis.get_ylim()[0], 0.9), 1.03)
    axes[-1].set_xticks(range(len(order)), [captions[name] for name in order], fontsize=8)
    if max(map(len, "\n".join(captions.values()).split("\n"))) > 9:
        axes[-1].tick_params(axis="x", rotation=30)
    plots.legend(canvas, axes[0], "upper right")
    plots.save(canvas, path)


def _caption(name: str, condition: Condition | None) -> str:
    """What stands under a condition's points; what it is rather than what it is called, where that is short."""
    if condition is None:
        return name
    if condition.snr_db is not None:
        return f"{'white' if condition.kind == 'white_noise' else 'noise'}\n{condition.snr_db:g} dB"
    if condition.tempo is not None:
        return f"{'faster' if condition.tempo > 1 else 'slower'}\nx {condition.tempo:g}"
    return name.replace("_", "\n")
