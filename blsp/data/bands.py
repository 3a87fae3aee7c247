"""Which of many bit strings differ in few bits, without comparing each with each.

Of bit strings cut into more bands than may differ, one band is equal: strings that share a band are compared, no
others. With fewer bands one of them differs in few bits, so its neighbours are looked up too. Nothing is missed
(multi-index hashing; Norouzi, Punjani and Fleet 2012). (N strings, Q queries)
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

BITS = 256
WORDS = BITS // 64
QUERIES_AT_ONCE = 8192
PAIRS_AT_ONCE = 1 << 20
NARROW = 16  # bits; a table of this many keys is small
# Neighbouring bits are often alike: bands take every 17th, so that fewer strings share one by chance.
_ORDER = np.arange(BITS) * 17 % BITS


class Bands:
    """Strings and a length each, to be searched for those within `distance` bits and `tolerance` of length."""

    def __init__(self, bits: NDArray[np.uint64], lengths: NDArray[np.float64], distance: int, tolerance: float) -> None:
        self.bits, self.lengths, self.distance, self.tolerance = bits, lengths, distance, tolerance
        # Bands of 15 bits at least: shorter ones have so many strings each that little is saved.
        self.bands = min(distance + 1, BITS // 15)
        self.flips = distance // self.bands
        self.edges = np.linspace(0, BITS, self.bands + 1).astype(int)
        keys = self._keys(bits)
        self.order = [np.argsort(column, kind="stable") for column in keys]
        self.sorted = [column[order] for column, order in zip(keys, self.order, strict=True)]
        # Where each of all possible keys begins, if they are few: ten times as fast as a search.
        self.begins = [
            np.searchsorted(column, np.arange((1 << width) + 1)) if width <= NARROW else None
            for column, width in zip(self.sorted, np.diff(self.edges), strict=True)
        ]

    def near(
        self, bits: NDArray[np.uint64], lengths: NDArray[np.float64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs, as two columns at a time: the row of a query, and that of a string near it; some come repeatedly."""
        for start in range(0, len(bits), QUERIES_AT_ONCE):
            rows = slice(start, start + QUERIES_AT_ONCE)
            for band, keys in enumerate(self._keys(bits[rows])):
                for one, other in self._sharing(band, keys):
                    one += start
                    fits = np.abs(lengths[one] - self.lengths[other]) <= self.tolerance
                    one, other = one[fits], other[fits]
                    apart = np.bitwise_count(bits[one] ^ self.bits[other]).sum(axis=1)
                    near = apart <= self.distance
                    yield one[near], other[near]

    def _sharing(self, band: int, keys: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs of a query and a string whose band is its own, or a neighbour of it."""
        wanted = (keys[:, None] ^ self._masks(band)).ravel()
        if (begins := self.begins[band]) is not None:
            begin, end = begins[wanted], begins[wanted + 1]
        else:
            begin, end = (np.searchsorted(self.sorted[band], wanted, side=side) for side in ("left", "right"))
        found = np.flatnonzero(end > begin)
        begin, counts = begin[found], (end - begin)[found]
        queries = found // (len(wanted) // max(len(keys), 1))
        # As many look-ups at a time as give PAIRS_AT_ONCE.
        parts = np.searchsorted(np.cumsum(counts), np.arange(PAIRS_AT_ONCE, counts.sum(), PAIRS_AT_ONCE))
        for part in np.split(np.arange(len(found)), np.unique(parts)):
            own = counts[part]
            within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
            yield np.repeat(queries[part], own), self.order[band][np.repeat(begin[part], own) + within]

    def _masks(self, band: int) -> NDArray[np.int64]:
        """What to flip in a band's key for the key itself and its neighbours."""
        places = [1 << bit for bit in range(self.edges[band + 1] - self.edges[band])]
        return np.array(
            [sum(chosen) for count in range(self.flips + 1) for chosen in combinations(places, count)], dtype=np.int64
        )

    def _keys(self, bits: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
        """By band, the bits of each string in it, (N,)."""
        keys = [np.zeros((len(bits), 8), dtype=np.uint8) for _ in range(self.bands)]
        for start in range(0, len(bits), QUERIES_AT_ONCE):
            rows = slice(start, start + QUERIES_AT_ONCE)
            single = np.unpackbits(bits[rows].view(np.uint8), axis=1)[:, _ORDER]
            for key, begin, end in zip(keys, self.edges, self.edges[1:], strict=False):
                packed = np.packbits(single[:, begin:end], axis=1)
                key[rows, : packed.shape[1]] = packed
        # Packing fills from the highest bit.
        widths = np.diff(self.edges)
        return [
            (key.view(">u8").ravel() >> (64 - width)).astype(np.int64)
            for key, width in zip(keys, widths.astype(np.uint64), strict=True)
        ]
