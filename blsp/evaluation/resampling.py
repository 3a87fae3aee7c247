"""Intervals and paired tests, by resampling items. Axes: I items, K counts that a metric sums, R resamples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from blsp.params import Evaluate

Compute = Callable[[np.ndarray], float]
"""A metric's value, from its summed counts (K,)."""


class Figure(TypedDict):
    """One number of the report: the interval (low, high) is the percentile bootstrap over items."""

    value: float
    low: float
    high: float
    n: int
    signature: str


class Difference(TypedDict):
    """One system's value less another's on the same items, with its interval and the chance of one as large.

    `p` is that of approximate randomisation: how often the two differ as much, in either direction, where for each
    item a coin decides which of the two gave which answer.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True)
class Resampling:
    """How often, how wide and from which seed; all systems are resampled alike."""

    samples: int
    confidence: float
    seed: int

    def interval(self, values: list[float]) -> tuple[float, float]:
        """The lowest and the highest of the middle share `confidence` of the values."""
        tail = 50 * (1 - self.confidence)
        low, high = np.percentile(values, [tail, 100 - tail])
        return float(low), float(high)

    def drawn(self, items: int) -> np.ndarray:
        """How often each item is drawn (R, I), where as many as there are are drawn with replacement."""
        rng = np.random.default_rng(self.seed)
        return rng.multinomial(items, np.full(items, 1 / items), self.samples)


def resampling_of(settings: Evaluate) -> Resampling:
    """As the section `evaluate` of params.yaml has it."""
    return Resampling(settings.bootstrap_samples, settings.confidence, settings.seed)


def bootstrap(counts: np.ndarray, compute: Compute, resampling: Resampling, signature: str) -> Figure:
    """The figure whose value is `compute` of the summed counts (I, K), with its percentile interval over items."""
    low, high = resampling.interval([compute(total) for total in resampling.drawn(len(counts)) @ counts])
    signature = f"{signature}|bootstrap:{resampling.samples}|seed:{resampling.seed}"
    return Figure(value=float(compute(counts.sum(0))), low=low, high=high, n=len(counts), signature=signature)


def difference(ours: np.ndarray, theirs: np.ndarray, compute: Compute, resampling: Resampling) -> Difference:
    """How much more `compute` gives of our counts (I, K) than of theirs, of the same items in the same order."""
    drawn = resampling.drawn(len(ours))
    low, high = resampling.interval(
        [compute(one) - compute(other) for one, other in zip(drawn @ ours, drawn @ theirs, strict=True)]
    )
    value = compute(ours.sum(0)) - compute(theirs.sum(0))
    swapped = np.random.default_rng(resampling.seed).integers(0, 2, (resampling.samples, len(ours)))
    moved = swapped @ (theirs - ours)
    by_chance = [compute(ours.sum(0) + move) - compute(theirs.sum(0) - move) for move in moved]
    # A difference of rounding is none: sums in another order may differ in their last bits.
    as_large = sum(abs(one) >= abs(value) - 1e-9 for one in by_chance)
    p = (as_large + 1) / (resampling.samples + 1)
    return Difference(value=float(value), low=low, high=high, p=p, n=len(ours))


def ratio(numerators: list[float], denominators: list[float], resampling: Resampling, signature: str) -> Figure:
    """The sum of numerators over the sum of denominators, resampled over items."""
    counts = np.array([numerators, denominators], dtype=float).T
    return bootstrap(counts, lambda total: total[0] / total[1], resampling, signature)
