"""Which utterances each step learns from, and which process computes them: nothing but arithmetic on lengths.

The plan is a function of the seed and the step. It does not depend on how many processes there are, so a run
goes on from any step, on any number of them, and no utterance is skipped or seen twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

POOL_BATCHES = 32  # batches sorted by length together: enough for little padding, few enough for variety


@dataclass(frozen=True, eq=False)
class Sizes:
    """How long each of N utterances is: encoder frames (N,), and by behaviour the LLM's positions and targets.

    `positions` (N,) counts prompt, speech vectors and response, `targets` (N,) the response alone: 0 where the
    utterance lacks the behaviour. `frame_cost` is the work of one encoder frame in LLM positions.
    """

    frames: np.ndarray
    positions: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    frame_cost: float = 0.0


@dataclass(frozen=True)
class Choice:
    """One utterance, by its row, and the behaviour it is learned with."""

    row: int
    behaviour: str


class Plan:
    """The batches of a training run, each epoch every utterance once, with a behaviour drawn by its share.

    An utterance that lacks the drawn behaviour gets another that it has; one that has none is left out.
    """

    def __init__(self, sizes: Sizes, shares: Mapping[str, float], batch_size: int, seed: int) -> None:
        self.sizes, self.batch_size, self.seed = sizes, batch_size, seed
        self.behaviours = [name for name, share in shares.items() if share > 0]
        weights = np.array([shares[name] for name in self.behaviours])
        has = np.stack([sizes.targets[name] > 0 for name in self.behaviours])
        self.rows = np.flatnonzero(has.any(0))
        weighted = has[:, self.rows] * weights[:, None]
        self._thresholds = weighted.cumsum(0) / np.maximum(weighted.sum(0), 1e-12)
        self.batches_per_epoch = -(-len(self.rows) // batch_size)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int) -> list[Choice]:
        """The utterances of one step, counted from 0, over all processes."""
        epoch, number = divmod(step, self.batches_per_epoch)
        order, drawn = self._epoch(epoch)
        return [Choice(int(self.rows[at]), self.behaviours[drawn[at]]) for at in order[number]]

    def target_count(self, choices: Sequence[Choice]) -> int:
        """How many tokens these utterances are trained to predict."""
        return sum(int(self.sizes.targets[choice.behaviour][choice.row]) for choice in choices)

    def _make_epoch(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        drawn = (rng.random(len(self.rows)) >= self._thresholds).sum(0).clip(max=len(self.behaviours) - 1)
        frames = self.sizes.frames[self.rows]
        shuffled = rng.permutation(len(self.rows))
        batches: list[np.ndarray] = []
        for start in range(0, len(shuffled), POOL_BATCHES * self.batch_size):
            pool = shuffled[start : start + POOL_BATCHES * self.batch_size]
            pool = pool[np.argsort(frames[pool], kind="stable")]
            batches += [pool[at : at + self.batch_size] for at in range(0, len(pool), self.batch_size)]
        return [batches[number] for number in rng.permutation(len(batches))], drawn

    def micro_batches(self, choices: Sequence[Choice], budget: float, processes: int) -> list[list[list[Choice]]]:
        """For each process its micro-batches, as many on every process, each within `budget` if it can be.

        The budget counts LLM positions with padding, and encoder frames at their cost. Where there are fewer
        utterances than processes, some micro-batches are empty.
        """
        order = sorted(choices, key=lambda choice: (self.sizes.frames[choice.row], choice.row))
        parts = processes
        if order:
            frames = np.array([self.sizes.frames[choice.row] for choice in order])
            positions = np.array([self.sizes.positions[choice.behaviour][choice.row] for choice in order])
            # One number of parts after the other: the dearest piece may cost more again where the cuts fall worse.
            while parts < len(order) and self._dearest(frames, positions, _cuts(len(order), parts)) > budget:
                parts += processes
        micro = [order[start:end] for start, end in pairwise(_cuts(len(order), parts))]
        return [micro[rank::processes] for rank in range(processes)]

    def _dearest(self, frames: np.ndarray, positions: np.ndarray, cuts: np.ndarray) -> float:
        """The cost of the piece that costs most, of utterances sorted by `frames`, none of the pieces empty."""
        longest = frames[cuts[1:] - 1] * self.sizes.frame_cost + np.maximum.reduceat(positions, cuts[:-1])
        return float((np.diff(cuts) * longest).max())


def _cuts(count: int, parts: int) -> np.ndarray:
    """Where `count` utterances are cut into pieces as equal as can be, the longer ones first, (parts + 1,)."""
    shorter, longer = divmod(count, parts)
    piece = np.arange(parts + 1)
    return piece * shorter + np.minimum(piece, longer)
