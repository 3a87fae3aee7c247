"""Utterances by the length of their audio."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LENGTH_BINS = 5


@dataclass(frozen=True, eq=False)
class LengthBin:
    """The row numbers (U,) of utterances of like length, and the shortest and the longest of them in seconds."""

    members: np.ndarray
    from_s: float
    to_s: float

    @property
    def name(self) -> str:
        """As signatures call it."""
        return f"audio:{self.from_s:.2f}-{self.to_s:.2f} s"


def length_bins(lengths_s: Sequence[float], bins: int = LENGTH_BINS) -> list[LengthBin]:
    """The bins, shortest audio first; each holds about as many utterances.

    Utterances of one length are in one bin, so that there may be fewer bins than asked for.
    """
    lengths = np.asarray(lengths_s)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)))
    bin_of = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, max(len(edges) - 2, 0))
    found = []
    for number in np.unique(bin_of):
        members = np.flatnonzero(bin_of == number)
        found.append(LengthBin(members, float(lengths[members].min()), float(lengths[members].max())))
    return found
