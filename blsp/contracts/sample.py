"""A sample of rows that come one batch after the other: chosen by what they are, not by when they come."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray


def keys_of(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A number for each text, evenly spread, the same for the same text always, (N,)."""
    return pd.util.hash_array(np.array(texts, dtype=object), categorize=False)


class Sample:
    """The rows with the smallest keys, `size` at most, in the order in which they came; all where there are no more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._below = 2**64
        self._keys: list[NDArray[np.uint64]] = []
        self._rows: list[pa.Table] = []
        self._count = 0

    def add(self, keys: NDArray[np.uint64], rows: pa.Table) -> None:
        """Nothing; those of the rows that belong to the sample so far are in it."""
        chosen = keys < self._below
        self._keys.append(keys[chosen])
        self._rows.append(rows.filter(pa.array(chosen)))
        self._count += len(self._keys[-1])
        if self._count > 2 * self.size:
            self._cut()

    def tables(self) -> list[pa.Table]:
        """The sample, in parts."""
        if self._count > self.size:
            self._cut()
        return self._rows

    def _cut(self) -> None:
        keys, rows = np.concatenate(self._keys), pa.concat_tables(self._rows)
        # Rows of one key stay or go together, so that it does not matter which of them came first.
        self._below = int(np.partition(keys, self.size)[self.size])
        chosen = keys < self._below
        self._keys, self._rows = [keys[chosen]], [rows.filter(pa.array(chosen)).combine_chunks()]
        self._count = len(self._keys[0])
