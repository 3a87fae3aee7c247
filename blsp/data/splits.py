"""Which rows are held out: whole speakers, and no sentence of theirs in what is trained on.

Decided from metadata, before any audio is touched. Memory holds one number a speaker (a row, where speakers
are unknown) and the held-out sentences.
"""

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blsp.data.records import Row, Utterance

HELD_OUT_FIRST = ("test", "dev", "train")


@dataclass(frozen=True)
class SpeakerSplits:
    """The split of each speaker: what a row of theirs names, otherwise by hash."""

    named: dict[str, str]
    test_below: float
    dev_below: float

    def of(self, utterance: Utterance) -> str:
        """The utterance's split: its own, else its speaker's, else by hash of the speaker (or the id)."""
        if utterance.split:
            return utterance.split
        if utterance.speaker in self.named:
            return self.named[utterance.speaker]
        place = _place(_unit(utterance))
        return "test" if place < self.test_below else "dev" if place < self.dev_below else "train"


def assign_speakers(rows: Iterable[Row], dev_share: float, test_share: float) -> SpeakerSplits:
    """The splits for the rows that name none.

    Speakers lie by hash between 0 and 1:

        0 ... test_share ... test_share + dev_share ................ 1
          test           dev                          train

    In a small corpus nobody may lie in the first two, so each is stretched until it holds one speaker, unless
    its share is 0. Rows added to a large corpus move nobody else. Where a speaker is unknown, the row's id
    stands in. A speaker of whom rows name several splits goes to the most held out of them.
    """
    named: dict[str, str] = {}
    unnamed: set[str] = set()
    alone = array("d")
    for row in rows:
        if not isinstance(row, Utterance):
            continue
        if not row.split and row.speaker:
            unnamed.add(row.speaker)
        elif not row.split:
            alone.append(_place(_unit(row)))
        elif row.speaker:
            named[row.speaker] = min(row.split, named.get(row.speaker, "train"), key=HELD_OUT_FIRST.index)
    of_speakers = [_place(_speaker(speaker)) for speaker in unnamed - named.keys()]
    ordered = np.sort(np.concatenate([of_speakers, alone]))
    test_below = _stretched(ordered, 0.0, test_share)
    return SpeakerSplits(named, test_below, _stretched(ordered, test_below, dev_share))


class HeldOutSentences:
    """The sentences of test and dev, so that a row whose sentence is held out further is found.

    A sentence is given by its keys (`text.sentence_keys`); two that share one are the same.
    """

    def __init__(self) -> None:
        self._keys: dict[str, set[str]] = {"test": set(), "dev": set()}

    def add(self, keys: Iterable[str], split: str) -> None:
        """Hold the sentence out where its split is test or dev."""
        if split in self._keys:
            self._keys[split].update(keys)

    def elsewhere(self, keys: Iterable[str], split: str) -> str | None:
        """The split that keeps the sentence from `split`: test from dev and train, dev from train."""
        for other in HELD_OUT_FIRST[: HELD_OUT_FIRST.index(split)]:
            if not self._keys[other].isdisjoint(keys):
                return other
        return None


class SentenceCounts:
    """How often each sentence was met in each split; memory holds some hundred bytes for each."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()

    def add(self, keys: Sequence[str], split: str) -> int:
        """How often the sentence, by the last of its keys, is in the split, this time included."""
        key = hashlib.blake2b(f"{split} {keys[-1]}".encode(), digest_size=12).digest()
        self._counts[key] += 1
        return self._counts[key]


def _unit(utterance: Utterance) -> str:
    return _speaker(utterance.speaker) if utterance.speaker else f"id {utterance.id}"


def _speaker(speaker: str) -> str:
    return f"speaker {speaker}"


def _place(unit: str) -> float:
    return int.from_bytes(hashlib.sha256(unit.encode()).digest()[:6]) / 2**48


def _stretched(ordered: NDArray[np.float64], above: float, share: float) -> float:
    first = np.searchsorted(ordered, above)
    if not share or first == len(ordered):
        return above + share
    return max(above + share, math.nextafter(float(ordered[first]), 2.0))
