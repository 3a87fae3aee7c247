"""Bins of length: every utterance once, those of one length together."""

import numpy as np
import pytest

from blsp.evaluation.lengths import length_bins


def test_every_utterance_is_in_one_bin_of_about_as_many():
    lengths_s = np.random.default_rng(1).uniform(1, 9, 103).tolist()
    bins = length_bins(lengths_s, 4)
    assert sorted(np.concatenate([some.members for some in bins]).tolist()) == list(range(103))
    assert all(25 <= len(some.members) <= 26 for some in bins)
    for some in bins:
        own = [lengths_s[at] for at in some.members]
        assert (some.from_s, some.to_s) == (min(own), max(own))
    assert [some.from_s for some in bins] == sorted(some.from_s for some in bins)
    assert bins[0].name == f"audio:{bins[0].from_s:.2f}-{bins[0].to_s:.2f} s"


@pytest.mark.parametrize(
    ("lengths_s", "members"),
    [([2.0] * 6, [list(range(6))]), ([1.0] * 5 + [3.0], [list(range(6))]), ([1, 2], [[0], [1]])],
)
def test_utterances_of_one_length_stay_together(lengths_s, members):
    assert [some.members.tolist() for some in length_bins(lengths_s, 4)] == members
