"""Figures by condition and by voice; the pictures are of everything that was measured."""

import numpy as np
import pandas as pd

from blsp.evaluation.metrics import accuracy
from blsp.evaluation.resampling import Resampling
from blsp.evaluation.robustness import Panel, draw_conditions, draw_voices, figures_by, measured_by
from blsp.params import load_params
from tests.trained import PARAMS

RESAMPLING = Resampling(50, 0.95, 1)
PNG = b"\x89PNG"


def graded(*rows):
    """A table of answers to one task: (system, condition, speaker, right or wrong)."""
    names = ["system", "condition", "speaker", "right"]
    table = pd.DataFrame(rows, columns=names).assign(seed=1, task="intent")
    table["id"] = table["condition"] + " of " + table["speaker"].fillna("nobody")
    return table.assign(counts=[np.array([right, 1.0]) for right in table["right"]])


ROWS = graded(
    *(("speech", "clean", voice, 1) for voice in ("f2", "m3")),
    *(("speech", "noise_0db", voice, right) for voice, right in (("f2", 1), ("m3", 0))),
    *(("cascade", "clean", voice, 1) for voice in ("f2", "m3")),
)


def figures(key, rows):
    return figures_by(measured_by(key, rows, "intent", accuracy()), RESAMPLING)


def test_figures_are_of_each_systems_rows_in_each_group():
    found = figures("condition", ROWS)
    assert {system: list(of) for system, of in found.items()} == {
        "speech": ["clean", "noise_0db"],
        "cascade": ["clean"],
    }
    assert found["speech"]["clean"]["value"] == 1 and found["speech"]["clean"]["n"] == 2
    assert found["speech"]["noise_0db"]["value"] == 0.5
    assert found["speech"]["noise_0db"]["signature"].startswith("accuracy|exact match, plain words|condition:noise_0db")
    other = measured_by("condition", ROWS.assign(task="another"), "intent", accuracy())
    assert other == {}, "answers to other tasks are left out"
    unsaid = graded(("speech", "clean", "m3", 0), ("speech", "clean", None, 1))
    assert list(figures("speaker", unsaid)["speech"]) == ["m3"]


def drawn_labels(monkeypatch, draw):
    """What stands below the points of a picture, in order."""
    from matplotlib.axes import Axes

    seen = []
    original = Axes.set_xticks

    def set_xticks(self, ticks, labels=None, **kwargs):
        seen.extend(labels or [])
        return original(self, ticks, labels, **kwargs)

    monkeypatch.setattr(Axes, "set_xticks", set_xticks)
    draw()
    return seen


def test_conditions_stand_from_clean_over_rising_noise_to_the_others(tmp_path, monkeypatch):
    conditions = load_params(PARAMS).evaluate.conditions
    names = ["telephone", "clean", "noise_5db", "noise_20db", "slow"]
    found = figures("condition", graded(*(("speech", name, "f2", 1) for name in names)))
    path = tmp_path / "robustness.png"
    panels = [Panel("intent", "accuracy", found)]
    labels = drawn_labels(monkeypatch, lambda: draw_conditions(panels, conditions, path))
    assert labels == ["clean", "noise\n20 dB", "noise\n5 dB", "slower\nx 0.8", "telephone"]
    assert path.read_bytes().startswith(PNG)


def test_voices_stand_from_the_best_on(tmp_path, monkeypatch):
    panels = [Panel("intent", "accuracy", figures("speaker", ROWS[:4]))]
    labels = drawn_labels(monkeypatch, lambda: draw_voices(panels, tmp_path / "voices.png"))
    assert labels == ["f2 (2)", "m3 (2)"]
