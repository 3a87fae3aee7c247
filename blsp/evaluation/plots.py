"""What every figure is made of: a canvas of panels, intervals, bars, a legend."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from blsp.evaluation.resampling import Figure

SPEECH = "#d1495b"  # what is looked at is red in every figure
COLOURS = ("#edae49", "#00798c", "#6a4c93", "#30638e", "#8fb0c6", "#76b041", "#b5651d", "#3d3d3d", "#c77dff")
DPI = 130


def canvas(
    panels: int, columns: int, panel_in: tuple[float, float], margin_in: tuple[float, float] = (0, 0), **shared: Any
) -> tuple[Any, list[Any]]:
    """A figure and its panels, at most so many columns; width and height in inches of a panel, and of what is around.

    `shared` says which axes the panels share (sharex, sharey).
    """
    from matplotlib.figure import Figure as Canvas

    columns = min(columns, panels)
    rows = -(-panels // columns)
    width, height = panel_in[0] * columns + margin_in[0], panel_in[1] * rows + margin_in[1]
    figure = Canvas(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


def save(figure: Any, path: Path) -> None:
    """Nothing; the figure is at `path`."""
    figure.savefig(path, dpi=DPI)


def intervals(axis: Any, x: Sequence[float], figures: Sequence[Figure], **style: Any) -> None:
    """Nothing; the figures stand at `x` with their intervals, in the style of matplotlib's errorbar."""
    values = [one["value"] for one in figures]
    # A percentile of resamples may lie beyond the value itself.
    below = [max(one["value"] - one["low"], 0) for one in figures]
    above = [max(one["high"] - one["value"], 0) for one in figures]
    axis.errorbar(x, values, [below, above], **style)


def bar(axis: Any, place: float, figure: Figure, colour: Any, width: float = 0.7) -> None:
    """Draw a bar of the figure at `place`, with its interval."""
    axis.bar(place, figure["value"], color=colour, width=width)
    intervals(axis, [place], [figure], color="black", capsize=3)


def beside(axis: Any, figures: Mapping[str, Mapping[str, Figure]]) -> None:
    """Nothing; the figures of {system: {task: figure}} stand task beside task, the systems side by side in each."""
    tasks = tasks_of(figures)
    for place, (name, colour) in enumerate(colours(figures).items()):
        shift = (place - (len(figures) - 1) / 2) * 0.7 / len(figures)
        shown = [task for task in tasks if task in figures[name]]
        x = [tasks.index(task) + shift for task in shown]
        _points(axis, x, [figures[name][task] for task in shown], colour, name)
    axis.set_xticks(range(len(tasks)), tasks, fontsize=8, rotation=35, ha="right")
    axis.set_xlim(-0.5, len(tasks) - 0.5)
    axis.grid(alpha=0.3, axis="y")


def by_length(axis: Any, bins: Mapping[str, Sequence[Mapping[str, Any]]], palette: Mapping[str, str]) -> None:
    """Nothing; a line each of {name: [{"from_s", "to_s", "figure"}]} along the length of the audio."""
    for place, (name, some) in enumerate(bins.items()):
        # So that intervals do not hide one another.
        shift = (place - (len(bins) - 1) / 2) * 0.006 * (some[-1]["to_s"] - some[0]["from_s"]) if some else 0
        middles = [(one["from_s"] + one["to_s"]) / 2 + shift for one in some]
        axis.plot(middles, [one["figure"]["value"] for one in some], color=palette[name], lw=1.2)
        _points(axis, middles, [one["figure"] for one in some], palette[name], name)
    axis.set_xlabel("length of the audio, s (middle of a bin)", fontsize=8)
    axis.grid(alpha=0.3)


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour a name, in their order."""
    return dict(zip(names, cycle(COLOURS), strict=False))


def tasks_of(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every task of {system: {task: ...}} once, in its order."""
    return list(dict.fromkeys(task for own in figures.values() for task in own))


def width_of_tasks(figures: Mapping[str, Mapping[str, Any]]) -> float:
    """Inches that a panel of `beside` takes."""
    return max(3.6, 0.55 * len(tasks_of(figures)))


def legend(figure: Any, axis: Any, place: str, **style: Any) -> None:
    """Nothing; what the axis shows is named once for the whole figure, beside its panels: `lower center`, ..."""
    handles, labels = axis.get_legend_handles_labels()
    style = {"ncols": len(labels), "fontsize": 8, "frameon": False} | style
    figure.legend(handles, labels, loc=f"outside {place}", **style)


def judged_by(metric: str, higher_is_better: bool) -> str:
    """`wer, lower is better`."""
    return f"{metric}, {'higher' if higher_is_better else 'lower'} is better"


def _points(axis: Any, x: Sequence[float], figures: Sequence[Figure], colour: str, label: str) -> None:
    intervals(axis, x, figures, color=colour, fmt="o", ms=4, capsize=2, lw=0.9, label=label)
