"""KL and agreement of hearing and reading, in pictures: by task and by length of the audio."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from blsp.evaluation import plots
from blsp.evaluation.resampling import Figure

GAPS = {
    "kl": "KL(text || speech), nats a token, on a log scale\nlower is better",
    "top1_agreement": "same most likely token, share\nhigher is better",
}


def draw_gap_by_task(gaps: Mapping[str, Mapping[str, Mapping[str, Figure]]], path: Path) -> None:
    """Nothing; a picture of {system: {task: what `gap_figures` gives}}: KL and agreement, task beside task."""
    figure, axes = plots.canvas(len(GAPS), len(GAPS), (plots.width_of_tasks(gaps), 3.6))
    for axis, (key, title) in zip(axes, GAPS.items(), strict=True):
        plots.beside(axis, {name: {task: own[key] for task, own in gaps[name].items()} for name in gaps})
        axis.set_title(title, fontsize=9)
    axes[0].set_yscale("log")
    plots.legend(figure, axes[0], "lower center")
    plots.save(figure, path)


def draw_gap_by_length(bins: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Nothing; a picture of {task: what `gap_by_length` gives} of one system: KL and agreement by length."""
    figure, axes = plots.canvas(len(GAPS), len(GAPS), (4.6, 3.9))
    colours = dict(zip(bins, cycle((plots.SPEECH, *plots.COLOURS)), strict=False))
    for axis, (key, title) in zip(axes, GAPS.items(), strict=True):
        plots.by_length(
            axis, {task: [{**one, "figure": one[key]} for one in own] for task, own in bins.items()}, colours
        )
        axis.set_title(title, fontsize=9)
    axes[0].set_yscale("log")
    plots.legend(figure, axes[0], "lower center", ncols=5)
    plots.save(figure, path)
