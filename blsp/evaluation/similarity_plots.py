"""How alike the LLM's states are when it hears and when it reads, in pictures: by layer, by task, by length."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blsp.evaluation import plots
from blsp.evaluation.resampling import Figure

PANELS = {
    "content": "what was said\nmean over the speech vectors / over the transcript",
    "prompt_end": "ready to answer\nat the end of the prompt",
    "responses": "while it answers\nat each token of the response",
}
AXIS = "similarity to the states given the text\nlinear CKA, debiased"
CHANCE = "chance (pairs shuffled)"


def draw_by_layer(found: Mapping[str, Mapping[str, Mapping[str, Sequence[Figure]]]], path: Path) -> None:
    """Nothing; a picture of CKA by layer, a line a system of {system: what `similarity` gives}."""
    figure, axes = _canvas(3.6)
    for axis, kind in zip(axes, PANELS, strict=True):
        # The prompt ends with the same token in both: there is nothing to compare yet at layer 0.
        first = 1 if kind == "prompt_end" else 0
        for name, colour in plots.colours(found).items():
            some = found[name][kind]["cka"][first:]
            layers = range(first, first + len(some))
            axis.plot(layers, [one["value"] for one in some], color=colour, marker="o", ms=3.5, label=name)
            low, high = ([one[end] for one in some] for end in ("low", "high"))
            axis.fill_between(layers, low, high, color=colour, alpha=0.15, lw=0)
        chance = [one["value"] for one in next(iter(found.values()))[kind]["shuffled"][first:]]
        axis.plot(range(first, first + len(chance)), chance, color="black", ls=":", lw=1, label=CHANCE)
        axis.set_xlabel("layer of the LLM (0: its input)", fontsize=8)
        axis.set_xticks(sorted({round(k) for k in np.linspace(first, first + len(chance) - 1, min(len(chance), 9))}))
    _save(figure, axes, path)


def draw_by_task(found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Figure]]]], path: Path) -> None:
    """Nothing; a picture of CKA in the last layer, task beside task, of {system: {task: what `last_layer` gives}}."""
    figure, axes = _canvas(plots.width_of_tasks(found))
    for axis, kind in zip(axes, PANELS, strict=True):
        plots.beside(axis, {name: {task: own[kind]["cka"] for task, own in found[name].items()} for name in found})
    _save(figure, axes, path)


def draw_by_length(bins: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Nothing; a picture of CKA in the last layer by length, of {system: what `last_layer_by_length` gives}."""
    figure, axes = _canvas(3.6)
    for axis, kind in zip(axes, PANELS, strict=True):
        own = {name: [{**one, "figure": one[kind]["cka"]} for one in some] for name, some in bins.items()}
        plots.by_length(axis, own, plots.colours(bins))
    _save(figure, axes, path)


def _canvas(panel_width_in: float) -> tuple[Any, list[Any]]:
    figure, axes = plots.canvas(len(PANELS), len(PANELS), (panel_width_in, 3.8))
    for axis, title in zip(axes, PANELS.values(), strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_ylim(-0.05, 1.05)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(AXIS, fontsize=8)
    return figure, axes


def _save(figure: Any, axes: Sequence[Any], path: Path) -> None:
    plots.legend(figure, axes[0], "lower center")
    plots.save(figure, path)
