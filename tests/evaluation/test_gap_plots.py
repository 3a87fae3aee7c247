"""The gap's pictures are of every system and task, KL on a log scale."""

from pathlib import Path
from typing import Any

import pytest

from blsp.evaluation import gap_plots, plots, similarity_plots


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 3, "signature": ""}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that were saved; they are written as ever."""
    saved, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda picture, path: (saved.append(picture), save(picture, path)))
    return saved


def shown(axis: Any) -> dict[str, list[float]]:
    """{what is named in the legend: its values}."""
    handles, labels = axis.get_legend_handles_labels()
    lines = (handle.lines[0] if hasattr(handle, "lines") else handle for handle in handles)
    return {label: list(line.get_ydata()) for label, line in zip(labels, lines, strict=True)}


def test_the_gap_of_each_system_stands_at_its_tasks(tmp_path: Path, drawn: list[Any]) -> None:
    gaps = {task: {"kl": figure(kl), "top1_agreement": figure(0.9)} for task, kl in (("st", 0.1), ("qa", 2.0))}
    gap_plots.draw_gap_by_task({"speech": gaps, "ce": {"qa": gaps["qa"]}}, tmp_path / "tasks.png")
    kl, agreement = drawn[0].axes
    assert shown(kl) == {"speech": [0.1, 2.0], "ce": [2.0]} and kl.get_yscale() == "log"
    assert agreement.get_yscale() == "linear"
    assert [tick.get_text() for tick in kl.get_xticklabels()] == ["st", "qa"]


def test_the_gap_of_each_task_is_a_line_along_the_length(tmp_path: Path, drawn: list[Any]) -> None:
    bins = [{"from_s": at, "to_s": at + 1, "kl": figure(at), "top1_agreement": figure(0.9)} for at in (1, 2)]
    gap_plots.draw_gap_by_length({"st": bins, "qa": bins[:1]}, tmp_path / "length.png")
    assert shown(drawn[0].axes[0]) == {"st": [1, 2], "qa": [1]}


def test_similarity_is_drawn_by_layer_task_and_length(tmp_path: Path, drawn: list[Any]) -> None:
    kinds = {kind: {"cka": figure(0.9), "shuffled": figure(0)} for kind in similarity_plots.PANELS}
    layers = {kind: {name: [one] * 3 for name, one in own.items()} for kind, own in kinds.items()}
    similarity_plots.draw_by_layer({"speech": layers, "ce": layers}, tmp_path / "layer.png")
    similarity_plots.draw_by_task({"speech": {"st": kinds, "qa": kinds}, "ce": {"qa": kinds}}, tmp_path / "task.png")
    bins = [{"from_s": 1.0, "to_s": 2.0, **kinds}, {"from_s": 2.0, "to_s": 3.0, **kinds}]
    similarity_plots.draw_by_length({"speech": bins, "ce": []}, tmp_path / "length.png")
    by_layer, by_task, by_length = ([shown(axis) for axis in picture.axes] for picture in drawn)
    chance = "chance (pairs shuffled)"
    assert by_layer[0] == {"speech": [0.9] * 3, "ce": [0.9] * 3, chance: [0] * 3}
    assert by_layer[1] == {"speech": [0.9] * 2, "ce": [0.9] * 2, chance: [0] * 2}  # the prompt's end, from layer 1
    assert by_task == [{"speech": [0.9, 0.9], "ce": [0.9]}] * 3
    assert by_length == [{"speech": [0.9, 0.9], "ce": []}] * 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
