"""The behaviour gap in pictures: similarity by layer, KL and agreement by task and length."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from blsp.evaluation import plots
from blsp.evaluation.resampling import Figure

COLOURS = ("#edae49", "#00798c", "#6a4c93", "#30638e", "#8fb0c6", "#76b041", "#b5651d", "#3d3d3d", "#c77dff")
PANELS = {
    "content": "what was said\nmean over the speech vectors / over the transcript",
    "prompt_end": "ready to answer\nat the end of the prompt",
    "responses": "while it answers\nat each token of the response",
}
GAPS = {
    "kl": "KL(text || speech), nats a token\nlower is better",
    "top1_agreement": "same most likely token, share\nhigher is better",
}


def draw_similarity(found: Mapping[str, Mapping[str, Mapping[str, Sequence[Figure]]]], path: Path) -> None:
    """Nothing; a picture of CKA by layer, a line a system of {system: what `similarity` gives}."""
    figure, axes = plots.canvas(len(PANELS), len(PANELS), (3.6, 3.6))
    for axis, (kind, title) in zip(axes, PANELS.items(), strict=True):
        # The prompt ends with the same token in both: there is nothing to compare yet at layer 0.
        first = 1 if kind == "prompt_end" else 0
        for name, colour in _colours(found).items():
            some = found[name][kind]["cka"]
            _line(axis, range(first, len(some)), some[first:], colour, name)
        chance = next(iter(found.values()))[kind]["shuffled"]
        axis.plot(
            range(first, len(chance)),
            [one["value"] for one in chance[first:]],
            color="black",
            ls=":",
            lw=1,
            label="chance (pairs shuffled)",
        )
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("layer of the LLM (0: its input)", fontsize=8)
        axis.set_xticks(sorted({round(k) for k in np.linspace(first, len(chance) - 1, min(len(chance), 9))}))
        axis.set_ylim(-0.05, 1.05)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("similarity to the states given the text\nlinear CKA, debiased", fontsize=8)
    plots.legend(figure, axes[0], "lower center")
    plots.save(figure, path)


def draw_gap_by_task(gaps: Mapping[str, Mapping[str, Mapping[str, Figure]]], path: Path) -> None:
    """Nothing; a picture of {system: {task: what `gap_figures` gives}}: KL and agreement, task beside task."""
    tasks = list(dict.fromkeys(task for of_system in gaps.values() for task in of_system))
    figure, axes = plots.canvas(len(GAPS), len(GAPS), (max(4.4, 0.8 * len(tasks)), 3.6))
    for axis, (key, title) in zip(axes, GAPS.items(), strict=True):
        for place, (name, colour) in enumerate(_colours(gaps).items()):
            shown = [task for task in tasks if task in gaps[name]]
            x = [tasks.index(task) + (place - (len(gaps) - 1) / 2) * 0.2 for task in shown]
            _points(axis, x, [gaps[name][task][key] for task in shown], colour, name)
            for at, task in zip(x, shown, strict=True):
                value = gaps[name][task][key]["value"]
                text = f"{value:.2g}" if key == "kl" else f"{value:.3f}"
                axis.annotate(text, (at, value), (5, 3), textcoords="offset points", fontsize=7)
        axis.set_xticks(range(len(tasks)), tasks, fontsize=8)
        axis.set_xlim(-0.5, len(tasks) - 0.3)
        axis.set_title(f"{title}, on a log scale" if key == "kl" else title, fontsize=9)
        axis.grid(alpha=0.3, axis="y")
    axes[0].set_yscale("log")
    plots.legend(figure, axes[0], "lower center")
    plots.save(figure, path)


def draw_gap_by_length(bins: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Nothing; a picture of {task: what `gap_by_length` gives} of one system: KL and agreement by length."""
    figure, axes = plots.canvas(len(GAPS), len(GAPS), (4.4, 3.6))
    palette = dict(zip(bins, cycle((plots.SPEECH, *COLOURS)), strict=False))
    for axis, (key, title) in zip(axes, GAPS.items(), strict=True):
        for place, (task, colour) in enumerate(palette.items()):
            some = bins[task]
            shift = (place - (len(palette) - 1) / 2) * 0.006 * (some[-1]["to_s"] - some[0]["from_s"])
            middles = [(one["from_s"] + one["to_s"]) / 2 + shift for one in some]
            axis.plot(middles, [one[key]["value"] for one in some], color=colour, lw=1.2)
            _points(axis, middles, [one[key] for one in some], colour, task)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("length of the audio, s (middle of a bin)", fontsize=8)
        axis.grid(alpha=0.3)
    plots.legend(figure, axes[0], "lower center")
    plots.save(figure, path)


def _line(axis: Any, x: Sequence[float], figures: Sequence[Figure], colour: str, label: str) -> None:
    axis.plot(x, [one["value"] for one in figures], color=colour, marker="o", ms=3.5, label=label)
    axis.fill_between(
        x, [one["low"] for one in figures], [one["high"] for one in figures], color=colour, alpha=0.15, lw=0
    )


def _points(axis: Any, x: Sequence[float], figures: Sequence[Figure], colour: str, label: str) -> None:
    plots.intervals(axis, x, figures, color=colour, fmt="o", ms=4.5, capsize=2, lw=0.9, label=label)


def _colours(systems: Mapping[str, Any]) -> dict[str, str]:
    return dict(zip(systems, cycle(COLOURS), strict=False))
