"""The clusters that utterances form in the LLM, as the paper shows them: where it reads, and where it hears.

Axes: U utterances, D LLM width.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from blsp.evaluation import plots
from blsp.evaluation.states import States


def cluster_points(speech: States, text: States) -> pd.DataFrame:
    """A row an utterance: `id`, `text_x`, `text_y`, `speech_x`, `speech_y`, and `share`, the same in every row.

    A point is the utterance's mean state in the last layer, along the two directions in which the texts differ most
    (PCA of the text alone; they hold this share of its variance): what lies elsewhere than its text is seen to.
    """
    assert speech.ids == text.ids
    reference = text.content[-1].astype(np.float64)
    centre = reference.mean(0)
    _, sizes, directions = np.linalg.svd(reference - centre, full_matrices=False)
    points = {"id": text.ids}
    for side, states in (("text", text), ("speech", speech)):
        x, y = ((states.content[-1] - centre) @ directions[:2].T).T
        points |= {f"{side}_x": x, f"{side}_y": y}
    return pd.DataFrame(points).assign(share=np.square(sizes[:2]).sum() / np.square(sizes).sum())


def draw_clusters(points: Mapping[str, pd.DataFrame], labels: Mapping[str, str | None], path: Path) -> None:
    """Nothing; a picture of the {system: cluster_points}: the texts once, then each system, all on the same axes.

    A point has the colour of its utterance's label; those without one are left out.
    """
    from matplotlib import colormaps

    panels = {"text": (next(iter(points.values())), "text")}
    panels |= {name: (table, "speech") for name, table in points.items()}
    figure, axes = plots.canvas(len(panels), len(panels), (2.9, 3.4), (1.2, 0), sharex=True, sharey=True)
    for axis, (name, (table, side)) in zip(axes, panels.items(), strict=True):
        shown = table.assign(label=table["id"].map(labels))
        for number, (label, rows) in enumerate(shown.groupby("label")):
            colour = colormaps["tab20"](number % 20)
            axis.scatter(rows[f"{side}_x"], rows[f"{side}_y"], s=9, color=colour, label=label, linewidths=0)
        axis.set_title(f"{name}: the LLM {'reads' if side == 'text' else 'hears'}", fontsize=9)
        axis.set_xlabel("first direction", fontsize=8)
    share = panels["text"][0]["share"].iloc[0]
    axes[0].set_ylabel(f"second direction\n(both: {share:.0%} of the texts' variance)", fontsize=8)
    plots.legend(figure, axes[0], "right center", ncols=1, markerscale=2)
    plots.save(figure, path)
