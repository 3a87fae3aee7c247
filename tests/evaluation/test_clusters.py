"""Where utterances lie: what is heard beside what is read, along the directions in which the texts differ."""

import numpy as np
import pytest

from blsp.evaluation.clusters import cluster_points, draw_clusters
from blsp.evaluation.states import States


def states(content):
    """States whose last layer is `content` (U, D); the layer before is of no account."""
    layers = np.stack([np.zeros_like(content), content]).astype(np.float32)
    ids = [f"u{row}" for row in range(len(content))]
    return States(ids, layers, np.arange(len(content)), layers, layers)


def test_speech_lies_where_its_text_lies_if_their_states_are_the_same():
    rng = np.random.default_rng(1)
    text = rng.normal(size=(30, 6)) * [9, 5, 1, 1, 1, 1]
    points = cluster_points(states(text), states(text))
    np.testing.assert_allclose(points[["speech_x", "speech_y"]], points[["text_x", "text_y"]], rtol=1e-5)
    assert 0.9 < points["share"].iloc[0] < 1
    assert abs(points["text_x"].corr(points["text_y"])) < 1e-6  # principal directions


def test_speech_is_shown_on_the_axes_of_the_texts():
    """Moved along the texts' first direction by 20, speech lies 20 beside its text; moved elsewhere, where it was."""
    text = np.diag([9.0, 5.0, 0.1]) @ np.array([[1, -1, 0, 0], [0, 0, 1, -1], [1, 1, 0, 0]])
    along, elsewhere = (cluster_points(states(text.T + move), states(text.T)) for move in ([20, 0, 0], [0, 0, 20]))
    assert abs((along["speech_x"] - along["text_x"]).mean()) == pytest.approx(20, rel=1e-3)
    np.testing.assert_allclose(elsewhere["speech_x"], elsewhere["text_x"], atol=0.3)


def test_utterances_without_a_label_are_not_drawn(tmp_path):
    text = states(np.random.default_rng(1).normal(size=(9, 4)))
    labels = {f"u{row}": label for row, label in enumerate(["a", "b", None] * 3)}
    draw_clusters({"speech": cluster_points(text, text)}, labels, tmp_path / "clusters.png")
    assert (tmp_path / "clusters.png").read_bytes().startswith(b"\x89PNG")
