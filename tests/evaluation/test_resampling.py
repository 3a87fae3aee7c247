"""Intervals and paired tests: honest about few items, alike for all systems, right about what is chance."""

import numpy as np
import pytest

from blsp.evaluation.resampling import Resampling, bootstrap, difference, ratio

RESAMPLING = Resampling(400, 0.95, 1)


def share(total):
    return total[0] / total[1]


def hits(rights):
    return np.array([rights, np.ones(len(rights))], dtype=float).T


def test_intervals_widen_with_fewer_items_and_repeat_themselves():
    few = ratio([1.0, 0.0] * 5, [1.0] * 10, RESAMPLING, "x")
    many = ratio([1.0, 0.0] * 200, [1.0] * 400, RESAMPLING, "x")
    assert few["high"] - few["low"] > 3 * (many["high"] - many["low"])
    assert few["low"] < few["value"] < few["high"] and few["n"] == 10
    assert ratio([1.0, 0.0] * 5, [1.0] * 10, RESAMPLING, "x") == few


def test_the_interval_of_a_mean_is_the_one_of_statistics():
    figure = bootstrap(hits(np.arange(400) % 4 == 0), share, Resampling(4000, 0.95, 1), "x")
    standard_error = np.sqrt(0.25 * 0.75 / 400)
    assert figure["value"] == 0.25
    assert figure["low"] == pytest.approx(0.25 - 1.96 * standard_error, abs=0.006)
    assert figure["high"] == pytest.approx(0.25 + 1.96 * standard_error, abs=0.006)


def test_a_small_difference_on_the_same_items_is_found_where_intervals_overlap():
    """12 of 200 answers mended and none spoilt: by the sign test p is 0.0005, though the two intervals overlap."""
    theirs = np.arange(200) % 2 == 0
    ours = theirs | (np.arange(200) < 24)
    found = difference(hits(ours), hits(theirs), share, RESAMPLING)
    assert found["value"] == pytest.approx(12 / 200) and found["low"] > 0 and found["p"] < 0.01
    own, other = (bootstrap(hits(rights), share, RESAMPLING, "x") for rights in (ours, theirs))
    assert other["high"] > own["low"]


def test_differences_that_are_chance_are_called_so_as_often_as_p_says():
    rng = np.random.default_rng(0)
    ps = [
        difference(hits(rng.random(60) < 0.5), hits(rng.random(60) < 0.5), share, Resampling(200, 0.95, trial))["p"]
        for trial in range(200)
    ]
    # A test at 5 % may err in 5 % of the trials: 10 of 200, and more than 20 hardly ever.
    assert sum(p < 0.05 for p in ps) <= 20 and np.median(ps) > 0.3


def test_equal_systems_do_not_differ():
    same = difference(hits(np.arange(50) < 20), hits(np.arange(50) < 20), share, RESAMPLING)
    assert same["value"] == 0 and same["p"] == 1 and same["low"] == same["high"] == 0
