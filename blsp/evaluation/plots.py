"""What every figure is made of: a canvas of panels, intervals, bars, a legend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blsp.evaluation.resampling import Figure

SPEECH = "#d1495b"  # what is looked at is red in every figure
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


def bar(axis: Any, place: int, figure: Figure, colour: Any) -> None:
    """Nothing; a bar of the figure stands at `place`, with its interval."""
    axis.bar(place, figure["value"], color=colour, width=0.7)
    intervals(axis, [place], [figure], color="black", capsize=3)


def legend(figure: Any, axis: Any, place: str, **style: Any) -> None:
    """Nothing; what the axis shows is named once for the whole figure, beside its panels: `lower center`, ..."""
    handles, labels = axis.get_legend_handles_labels()
    style = {"ncols": len(labels), "fontsize": 8, "frameon": False} | style
    figure.legend(handles, labels, loc=f"outside {place}", **style)


def judged_by(metric: str, higher_is_better: bool) -> str:
    """`wer, lower is better`."""
    return f"{metric}, {'higher' if higher_is_better else 'lower'} is better"
