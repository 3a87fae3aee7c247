"""Figures by condition and by voice; the pictures are of everything that was measured."""

import numpy as np
import pytest

from blsp.evaluation import gap_plots
from blsp.evaluation.metrics import Resampling, accuracy
from blsp.evaluation.robustness import Panel, draw_conditions, draw_voices, figures_by
from blsp.evaluation.states import States
from blsp.params import load_params
from tests.trained import PARAMS

RESAMPLING = Resampling(50, 0.95, 1, "none", str)
PNG = b"\x89PNG"


def row(system, condition, speaker, answer, reference="tea"):
    return {
        "system": system,
        "condition": condition,
        "speaker": speaker,
        "answer": answer,
        "reference": reference,
    }


ROWS = [
    *(row("speech", "clean", voice, "tea") for voice in ("f2", "m3")),
    *(row("speech", "noise_0db", voice, answer) for voice, answer in (("f2", "tea"), ("m3", "coffee"))),
    *(row("cascade", "clean", voice, "tea") for voice in ("f2", "m3")),
    row("text", "clean", None, "tea"),
    row("speech", "clean", "f2", "coffee", None),
]


def test_figures_are_of_each_systems_rows_in_each_group():
    found = figures_by("condition", ROWS, accuracy, RESAMPLING)
    assert {system: list(of) for system, of in found.items()} == {
        "speech": ["clean", "noise_0db"],
        "cascade": ["clean"],
        "text": ["clean"],
    }
    assert found["speech"]["clean"]["value"] == 1 and found["speech"]["clean"]["n"] == 2  # one has no reference
    assert found["speech"]["noise_0db"]["value"] == 0.5
    by_voice = figures_by("speaker", ROWS, accuracy, RESAMPLING)
    assert by_voice["speech"]["m3"]["value"] == 0.5 and "text" not in by_voice


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
    figures = figures_by("condition", [row("speech", name, "f2", "tea") for name in names], accuracy, RESAMPLING)
    path = tmp_path / "robustness.png"
    panels = [Panel("intent", "accuracy", figures)]
    labels = drawn_labels(monkeypatch, lambda: draw_conditions(panels, conditions, path))
    assert labels == ["clean", "noise\n20 dB", "noise\n5 dB", "slower\nx 0.8", "telephone"]
    assert path.read_bytes().startswith(PNG)


def test_voices_stand_from_the_best_on(tmp_path, monkeypatch):
    panels = [Panel("intent", "accuracy", figures_by("speaker", ROWS[:4], accuracy, RESAMPLING))]
    labels = drawn_labels(monkeypatch, lambda: draw_voices(panels, tmp_path / "voices.png"))
    assert labels == ["f2 (2)", "m3 (2)"]


def figure(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 3, "signature": ""}


@pytest.fixture
def states():
    rng = np.random.default_rng(1)
    responses, content, prompt_end = rng.normal(size=(3, 2, 9, 4))
    return States([f"u{row}" for row in range(9)], responses, np.arange(9), content, prompt_end)


def test_the_gap_is_drawn(tmp_path, states):
    kinds = {kind: {"cka": [figure(0.9)] * 2, "shuffled": [figure(0)] * 2} for kind in gap_plots.PANELS}
    gaps = {"kl": figure(0.1), "top1_agreement": figure(0.9)}
    bins = [{"from_s": at, "to_s": at + 1, **gaps} for at in (1, 2)]
    gap_plots.draw_similarity({"speech": kinds, "untrained": kinds}, tmp_path / "similarity.png")
    gap_plots.draw_clusters({"speech": states}, states, ["a", "b", None] * 3, 1, tmp_path / "clusters.png")
    gap_plots.draw_gap_by_task({"speech": {"st": gaps, "qa": gaps}, "ce": {"st": gaps}}, tmp_path / "tasks.png")
    gap_plots.draw_gap_by_length({"st": bins, "qa": bins}, tmp_path / "length.png")
    names = {path.name for path in tmp_path.iterdir() if path.read_bytes().startswith(PNG)}
    assert names == {"similarity.png", "clusters.png", "tasks.png", "length.png"}
