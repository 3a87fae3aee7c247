"""CKA: against the formula by hand, what leaves it as it is, and what chance gives."""

import json

import numpy as np
import pytest

from blsp.evaluation.resampling import Resampling
from blsp.evaluation.similarity import last_layer, last_layer_by_length, linear_cka, similarity
from blsp.evaluation.states import States

RESAMPLING = Resampling(100, 0.95, 1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, eq. 4, in the width's space."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross, one, other = (np.square(a.T @ b).sum() for a, b in ((x, y), (x, x), (y, y)))
    return cross / np.sqrt(one * other)


def hsic_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, eq. 4: the mean over all quadruples of different rows of h(i, j, q, r)."""
    k, l, n = x @ x.T, y @ y.T, len(x)  # noqa: E741
    total, count = 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
                        count += 1
    return total / count


def test_it_is_the_mean_over_all_quadruples_of_rows(rng):
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 5))
    y[:, :3] += x
    expected = hsic_by_hand(x, y) / np.sqrt(hsic_by_hand(x, x) * hsic_by_hand(y, y))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)


def test_with_many_rows_it_is_the_plain_index(rng):
    x = rng.normal(size=(3000, 6)) * np.arange(1, 7)
    y = x @ rng.normal(size=(6, 4)) + rng.normal(size=(3000, 4))
    assert linear_cka(x, y) == pytest.approx(plain_cka(x, y), abs=0.003)


def test_nothing_in_common_is_0_in_any_width_where_the_plain_index_rises_with_it(rng):
    x, y = rng.normal(size=(2, 60, 900))
    assert plain_cka(x, y) > 0.9
    assert linear_cka(x, y) == pytest.approx(0, abs=0.05)


def test_rotation_shift_and_scale_leave_it_as_it_is(rng):
    x, y = rng.normal(size=(2, 50, 8))
    y = y + x
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    assert linear_cka(x, 3 * y @ rotation + 100) == pytest.approx(linear_cka(x, y), rel=1e-9)
    assert linear_cka(x, 2 * x @ rotation - 5) == pytest.approx(1)


def test_states_that_are_all_the_same_are_like_nothing(rng):
    x = rng.normal(size=(20, 4))
    assert linear_cka(x, np.ones((20, 4))) == 0 and linear_cka(np.ones((20, 4)), np.ones((20, 4))) == 0


def states(rng: np.random.Generator, utterances: int, shared: np.ndarray, noise: float) -> States:
    """Three layers, of which each has less of what is shared."""
    each = [shared + share * noise * rng.normal(size=shared.shape) for share in (0, 1, 5)]
    layers = np.stack(each).astype(np.float32)
    ids = [f"u{number}" for number in range(utterances)]
    return States(ids, layers.repeat(2, axis=1), np.arange(utterances).repeat(2), layers, layers)


def test_layers_have_a_figure_with_an_interval_beside_one_of_chance(rng):
    shared = rng.normal(size=(80, 16))
    text, speech = states(rng, 80, shared, 0.0), states(rng, 80, shared, 1.0)
    found = similarity(speech, text, RESAMPLING, "st")
    assert list(found) == ["responses", "content", "prompt_end"]
    for layers in found.values():
        first, second, third = layers["cka"]
        assert first["value"] == pytest.approx(1) and first["high"] - first["low"] < 1e-6
        assert 1 > second["low"] > third["value"] and second["low"] < second["value"] < second["high"]
        assert all(chance["low"] < 0.1 and abs(chance["value"]) < 0.05 for chance in layers["shuffled"])
        assert (
            second["n"] == 80
            and "|st|" in second["signature"]
            and "layer:1" in second["signature"]
            and "jackknife:20" in second["signature"]
        )
    json.dumps(found, allow_nan=False)


def test_intervals_are_as_wide_as_figures_of_other_utterances_differ(rng):
    """The jackknife over utterances against drawing anew: doubled rows of one utterance must not narrow it."""
    values, widths = [], []
    for _ in range(30):
        shared = rng.normal(size=(60, 8))
        figure = similarity(states(rng, 60, shared, 1.5), states(rng, 60, shared, 0.0), RESAMPLING, "st")["content"][
            "cka"
        ][1]
        values.append(figure["value"])
        widths.append(figure["high"] - figure["low"])
    assert np.mean(widths) == pytest.approx(2 * 2.09 * np.std(values), rel=0.4)


def test_states_of_other_utterances_are_refused(rng):
    shared = rng.normal(size=(30, 4))
    with pytest.raises(AssertionError):
        similarity(states(rng, 30, shared, 1), states(rng, 29, shared[:29], 1), RESAMPLING, "st")


def test_the_last_layer_alone_is_that_of_all_layers(rng):
    shared = rng.normal(size=(40, 16))
    sides = states(rng, 40, shared, 1.0), states(rng, 40, shared, 0.0)
    whole = similarity(*sides, RESAMPLING, "st")
    assert last_layer(*sides, RESAMPLING, "st") == {
        kind: {name: layers[-1] for name, layers in own.items()} for kind, own in whole.items()
    }


def test_by_length_each_bin_is_of_its_own_utterances(rng):
    """What is said in the shorter half is heard, in the longer half it is not."""
    shared = rng.normal(size=(80, 16))
    text, speech = states(rng, 80, shared, 0.0), states(rng, 80, shared, 0.1)
    lengths_s = rng.permutation(80) / 10
    longer = lengths_s >= 3.2  # the upper three of five bins
    for side in (speech.content, speech.prompt_end):
        side[:, longer] = rng.normal(size=side[:, longer].shape)
    speech.responses[:, np.repeat(longer, 2)] = rng.normal(size=(3, 2 * longer.sum(), 16))
    bins = last_layer_by_length(speech, text, lengths_s.tolist(), RESAMPLING, "st")
    assert [round(one["from_s"], 1) for one in bins] == [0.0, 1.6, 3.2, 4.8, 6.4]
    for kind in ("responses", "content", "prompt_end"):
        values = [one[kind]["cka"]["value"] for one in bins]
        assert min(values[:2]) > 0.5 > 0.3 > max(values[2:])
    assert bins[0]["content"]["cka"]["n"] == 16 and "audio:0.00-1.50 s" in bins[0]["content"]["cka"]["signature"]


def test_of_too_few_utterances_there_is_no_figure(rng):
    shared = rng.normal(size=(30, 16))
    few, enough = (states(rng, count, shared[:count], 0.1) for count in (7, 8))
    assert last_layer(few, few, RESAMPLING, "st") == {}
    figures = last_layer(enough, enough, RESAMPLING, "st")
    json.dumps(figures, allow_nan=False)
    all_ = states(rng, 30, shared, 0.1)
    assert last_layer_by_length(all_, all_, list(range(30)), RESAMPLING, "st") == []
