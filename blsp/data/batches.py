"""From shards to training examples: how long each is, and dev's in batches."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from blsp.data.index import SplitIndex, load_index
from blsp.errors import BlspError
from blsp.model.chat import spoken_around
from blsp.prompts import Prompt
from blsp.training.examples import Example
from blsp.training.plan import Sizes
from blsp.training.prefixes import NONE, Prefixes, prefix_number

if TYPE_CHECKING:
    from blsp.model import BlspForConditionalGeneration, BlspProcessor


def training_sizes(
    index: SplitIndex,
    model: "BlspForConditionalGeneration",
    processor: "BlspProcessor",
    prefixes: Prefixes = NONE,
) -> Sizes:
    """How long each utterance is for the encoder and for the LLM, exactly, without reading its audio.

    What prompts begin with, of `prefixes`, is not computed with them and does not count.

    An encoder frame costs one forward of the encoder, an LLM position two forwards (student and teacher) and a
    backward to its input. Raises BlspError where the LLM wrote nothing for any utterance.
    """
    samples, where = np.unique(index.num_samples, return_inverse=True)
    frames = np.array([processor.frame_count(count) for count in samples.tolist()], dtype=np.int64)
    vectors = np.array([processor.audio_token_count(count) for count in samples.tolist()], dtype=np.int64)
    positions, targets = {}, {}
    for name in index.behaviours:
        targets[name] = index.response_tokens(name)
        around = _prompt_tokens(index, name, processor, prefixes) - 1
        positions[name] = np.where(targets[name] > 0, around + vectors[where] + targets[name], 0)
    if not any(count.any() for count in targets.values()):
        raise BlspError(
            f"data/continuations has no train row of {', '.join(index.behaviours)}; run `blsp continuations`"
        )
    encoder, llm = (sum(p.numel() for p in part.parameters()) for part in (model.audio_tower, model.language_model))
    return Sizes(frames[where], positions, targets, frame_cost=encoder / (3 * llm))


def _prompt_tokens(index: SplitIndex, behaviour: str, processor: "BlspProcessor", prefixes: Prefixes) -> np.ndarray:
    """Tokens of each utterance's prompt with one placeholder, after its prefix; 0 where the LLM wrote nothing."""
    prompts = index.prompts(behaviour)
    counts = {None: 0} | {one: _prompt_length(one, processor, prefixes) for one in set(prompts) if one is not None}
    return np.array([counts[one] for one in prompts], dtype=np.int64)


def _prompt_length(prompt: Prompt, processor: "BlspProcessor", prefixes: Prefixes) -> int:
    before, after = spoken_around(processor.tokenizer, prompt)
    ids = [*before, processor.audio_token_id, *after]
    return len(ids) - len(prefixes[prefix_number(prefixes, ids)])


def evaluation_batches(split: str, behaviour: str, batch_size: int) -> Iterator[list[Example]]:
    """Batches of one split's utterances that have the behaviour, shortest first."""
    index = load_index(split, [behaviour])
    rows = np.flatnonzero(index.response_tokens(behaviour))
    rows = rows[np.argsort(index.num_samples[rows], kind="stable")]
    for start in range(0, len(rows), batch_size):
        yield [index.example(row, behaviour) for row in rows[start : start + batch_size].tolist()]
