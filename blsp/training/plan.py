"""Which utterances each step learns from, and which process computes them: nothing but arithmetic on lengths.

The plan is a function of the seed and the step. It does not depend on how many processes there are, so a run
goes on from any step, on any number of them, and no utterance is skipped or seen twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Batches sorted by audio together: enough for little padding, few enough for variety. Not sorted by text: responses of
# one length are often of one kind, and batches of one kind were seen to teach less (benchmarks/LOG.md).
POOL_BATCHES = 32
BALANCING_ROUNDS = 200  # each brings the shares that are drawn nearer to those that are wanted
MICRO_BATCH_POSITIONS = 192  # what a micro-batch takes besides: weights are read, kernels started


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
    """The batches of a training run, each epoch every utterance once, with a behaviour drawn from those it has.

    They are drawn so that each behaviour has its share of all utterances, as far as it was written for enough of
    them. An utterance that has none is left out.
    """

    def __init__(self, sizes: Sizes, shares: Mapping[str, float], batch_size: int, seed: int) -> None:
        self.sizes, self.batch_size, self.seed = sizes, batch_size, seed
        self.behaviours = [name for name, share in shares.items() if share > 0]
        has = np.stack([sizes.targets[name] > 0 for name in self.behaviours])
        self.rows = np.flatnonzero(has.any(0))
        has = has[:, self.rows]
        weighted = has * _balanced(has, np.array([shares[name] for name in self.behaviours]))[:, None]
        self._thresholds = weighted.cumsum(0) / weighted.sum(0)
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

        Utterances are dealt to the processes in the order of their costs, so that all have like work. What each has is
        cut where that takes the least work in all. The budget counts LLM positions with padding, and encoder frames
        at their cost. Where a process has less to do than others, some of its micro-batches are empty.
        """
        encoder, llm = self._costs(choices)
        order = np.argsort(encoder + llm, kind="stable")
        hands = [order[rank::processes] for rank in range(processes)]
        cut = [np.split(hand, _best_cuts(encoder[hand], llm[hand], budget)) for hand in hands]
        rounds = max(map(len, cut))
        return [[[choices[at] for at in piece] for piece in pieces] + [[]] * (rounds - len(pieces)) for pieces in cut]

    def cost(self, choices: Sequence[Choice]) -> float:
        """What a micro-batch of these utterances takes of the budget, padding counted."""
        return float(len(choices) * sum(part.max() for part in self._costs(choices))) if choices else 0.0

    def work(self, choices: Sequence[Choice]) -> float:
        """What these utterances would take of the budget without padding."""
        return float(sum(part.sum() for part in self._costs(choices)))

    def _costs(self, choices: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray]:
        """What each utterance takes of the encoder and of the LLM, in LLM positions."""
        frames = np.array([self.sizes.frames[choice.row] for choice in choices], dtype=float)
        positions = np.array([self.sizes.positions[choice.behaviour][choice.row] for choice in choices], dtype=float)
        return frames * self.sizes.frame_cost, positions


def _balanced(has: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The weights (behaviours,) for each utterance's draw from those it has, so that all draw each by its share.

    `has` (behaviours, utterances) is true where an utterance has a behaviour. Found by proportional fitting.
    """
    kinds, counts = np.unique(has, axis=1, return_counts=True)
    weights = shares / shares.sum()
    for _ in range(BALANCING_ROUNDS):
        drawn = weights[:, None] * kinds
        found = (drawn / drawn.sum(0) * counts).sum(1) / counts.sum()
        if np.allclose(found, shares, rtol=1e-6, atol=0):
            break
        weights = np.maximum(weights * shares / np.maximum(found, 1e-12), 1e-12)
        weights /= weights.sum()
    return weights


def _best_cuts(encoder: np.ndarray, llm: np.ndarray, budget: float) -> list[int]:
    """Where to cut utterances of these costs for the least work: more pieces pad less, and take more besides.

    Found from the least work up to each utterance, for every place where the last piece may begin.
    """
    count = len(llm)
    least, begins = np.zeros(count + 1), np.zeros(count + 1, dtype=int)
    longest_audio, longest_text = np.zeros(count), np.zeros(count)  # of the piece that begins here
    for end in range(1, count + 1):
        np.maximum(longest_audio[:end], encoder[end - 1], out=longest_audio[:end])
        np.maximum(longest_text[:end], llm[end - 1], out=longest_text[:end])
        padded = np.arange(end, 0, -1) * (longest_audio[:end] + longest_text[:end])
        padded[:-1][padded[:-1] > budget] = np.inf
        work = least[:end] + padded + MICRO_BATCH_POSITIONS
        begins[end] = work.argmin()
        least[end] = work[begins[end]]
    cuts: list[int] = []
    while count and (count := int(begins[count])):
        cuts.append(count)
    return cuts[::-1]
