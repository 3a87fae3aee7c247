"""From shards to training examples: batches of similar lengths, behaviours in their shares, seeded."""

import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from blsp.data.shards import load_cuts
from blsp.errors import BlspError
from blsp.training.examples import Example

if TYPE_CHECKING:
    from lhotse import MonoCut


def training_batches(shares: Mapping[str, float], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches of the train split: every utterance once an epoch, with a behaviour drawn by its share.

    An utterance that lacks the drawn behaviour (its prompt was too long) gets another that it has; one that
    has none is left out, as the continuations report counts. The same seed gives the same batches.
    Raises BlspError where no utterance has any behaviour.
    """
    from lhotse.dataset import DynamicBucketingSampler

    behaviours = [name for name, share in shares.items() if share > 0]
    cuts = load_cuts("train", behaviours)
    if not any(_behaviours_of(cut, behaviours) for cut in cuts):
        raise BlspError("data/continuations has no train row of " + ", ".join(behaviours) + "; run `blsp continuations`")
    rng = random.Random(seed)
    epoch = 0
    while True:
        sampler = DynamicBucketingSampler(
            cuts, max_cuts=batch_size, num_buckets=8, buffer_size=10_000, shuffle=True, drop_last=False, seed=seed + epoch
        )
        for batch in sampler:
            examples = [example for cut in batch if (example := _draw(cut, shares, rng))]
            if examples:
                yield examples
        epoch += 1


def evaluation_batches(split: str, behaviour: str, batch_size: int) -> Iterator[list[Example]]:
    """Batches of one split's utterances that have the behaviour, shortest first."""
    cuts = [cut for cut in load_cuts(split, [behaviour]) if cut.has_custom(behaviour)]
    cuts.sort(key=lambda cut: (cut.duration, cut.id))
    for start in range(0, len(cuts), batch_size):
        yield [_example(cut, behaviour) for cut in cuts[start : start + batch_size]]


def _draw(cut: "MonoCut", shares: Mapping[str, float], rng: random.Random) -> Example | None:
    present = _behaviours_of(cut, [name for name, share in shares.items() if share > 0])
    if not present:
        return None
    return _example(cut, rng.choices(present, [shares[name] for name in present])[0])


def _behaviours_of(cut: "MonoCut", behaviours: list[str]) -> list[str]:
    return [name for name in behaviours if cut.has_custom(name)]


def _example(cut: "MonoCut", behaviour: str) -> Example:
    row = getattr(cut, behaviour)
    return Example(
        id=cut.id,
        num_samples=cut.num_samples,
        load_samples=lambda: cut.load_audio()[0],
        transcript=row["transcript"],
        instruction=row["instruction"],
        response_ids=row["token_ids"],
    )
