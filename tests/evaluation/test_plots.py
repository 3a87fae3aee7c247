"""What all figures share: as many panels as asked for, intervals that no rounding turns round, one legend."""

import pytest

from blsp.evaluation import plots


def figure(value, low, high):
    return {"value": value, "low": low, "high": high, "n": 3, "signature": ""}


def test_panels_stand_in_rows_and_those_to_spare_are_not_seen():
    drawn, panels = plots.canvas(5, 3, (2.0, 1.5), (1.0, 0.5))
    assert drawn.get_size_inches().tolist() == [7.0, 3.5]
    assert len(panels) == 5 and [axis.get_visible() for axis in drawn.axes] == [True] * 5 + [False]
    assert not any(axis.spines[side].get_visible() for axis in panels for side in ("top", "right"))
    few, _ = plots.canvas(2, 4, (2.0, 1.5))
    assert few.get_size_inches().tolist() == [4.0, 1.5]


def test_panels_share_the_axes_they_are_said_to():
    _, (one, other) = plots.canvas(2, 1, (2.0, 1.5), sharex=True)
    one.set_xlim(3, 4)
    assert other.get_xlim() == (3, 4) and one.get_shared_x_axes().joined(one, other)
    assert not one.get_shared_y_axes().joined(one, other)


def test_intervals_reach_from_low_to_high_and_never_beyond_the_value_on_the_wrong_side():
    _, (axis,) = plots.canvas(1, 1, (2.0, 1.5))
    plots.intervals(axis, [1, 2], [figure(0.5, 0.4, 0.7), figure(1.0, 1.0 + 1e-12, 1.0)], label="speech")
    (drawn,) = axis.containers
    (bars,) = drawn.lines[2]
    reach = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert reach == [pytest.approx([0.4, 0.7]), pytest.approx([1.0, 1.0])]


def test_a_bar_has_its_value_and_its_interval():
    _, (axis,) = plots.canvas(1, 1, (2.0, 1.5))
    plots.bar(axis, 3, figure(0.5, 0.4, 0.7), "red")
    (drawn,) = axis.patches
    assert drawn.get_height() == 0.5 and drawn.get_center()[0] == pytest.approx(3)
    _, interval = axis.containers
    (bars,) = interval.lines[2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([0.4, 0.7])


def test_a_legend_names_each_line_once_for_all_panels(tmp_path):
    drawn, (one, other) = plots.canvas(2, 2, (2.0, 1.5))
    for axis in (one, other):
        for name in ("speech", "cascade"):
            axis.plot([1, 2], label=name)
    plots.legend(drawn, one, "lower center")
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["speech", "cascade"]
    plots.save(drawn, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_said_which_way_is_better():
    assert plots.judged_by("wer", False) == "wer, lower is better"
    assert plots.judged_by("bleu", True) == "bleu, higher is better"
