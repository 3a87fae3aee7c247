"""What the LLM makes of the same utterances, layer by layer, when it hears them and when it reads them.

Axes: K layers (the embeddings, then each block; the last one after the LLM's closing norm, as transformers gives
them), U utterances, N places in their responses, B utterances of a batch, L tokens, D LLM width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from blsp.training.examples import Batch, Collator, Example

Side = Literal["spoken", "written"]

# Of a 7B LLM (33 layers, 4,096 wide) these are 2.2 GB in memory for each system, whatever the test set's size.
UTTERANCES = 1024
PLACES, PLACES_OF_A_TASK = 2048, 512


@dataclass(frozen=True, eq=False)
class States:
    """States of the LLM, float32, for the utterances `ids` (U,).

    `responses` (K, N, D) are those that predict the response at N sampled places; `utterance` (N,) is whose, by
    its row number.
    `content` (K, U, D) is the mean over the speech vectors, or over the transcript's tokens: over what is not
    common to the spoken and the written prompt. `prompt_end` (K, U, D) predicts the response's first token.
    """

    ids: list[str]
    responses: np.ndarray
    utterance: np.ndarray
    content: np.ndarray
    prompt_end: np.ndarray

    def of(self, rows: np.ndarray) -> "States":
        """Those of the utterances with these row numbers."""
        mine = np.isin(self.utterance, rows)
        return States(
            ids=[self.ids[row] for row in rows],
            responses=self.responses[:, mine],
            utterance=np.searchsorted(rows, self.utterance[mine]),
            content=self.content[:, rows],
            prompt_end=self.prompt_end[:, rows],
        )


def sample(examples: Sequence[Example], seed: int) -> list[Example]:
    """At most UTTERANCES of the examples, at random, in their order."""
    if len(examples) <= UTTERANCES:
        return list(examples)
    chosen = np.random.default_rng(seed).choice(len(examples), UTTERANCES, replace=False)
    return [examples[row] for row in np.sort(chosen)]


def layer_states(
    model: Any, processor: Any, examples: Sequence[Example], side: Side, batch_size: int, seed: int, places: int
) -> States:
    """The states of these utterances, hearing the speech (`spoken`) or reading the transcript (`written`).

    Of the responses, `places` are taken at random. The same examples and seed give the same ones, whatever the model
    and the side: states of both sides belong together one by one, since the LLM is given the same response after
    both prompts.
    """
    collate = Collator(processor)
    taken = _places([len(example.response_ids) for example in examples], seed, places)
    parts: list[list[np.ndarray]] = []
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size]).to(model.device)
        parts.append(_batch_states(model, batch, side, taken[start : start + batch_size]))
    responses, content, prompt_end = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    whose = np.repeat(np.arange(len(examples)), [len(some) for some in taken])
    return States([example.id for example in examples], responses, whose, content, prompt_end)


@torch.no_grad()
def hidden_states(model: Any, batch: Batch, side: Side) -> tuple[torch.Tensor, ...]:
    """The LLM's states (B, L, D) of each layer, of the batch's spoken or written prompts with their responses."""
    if side == "written":
        embeddings, mask = model.embed(batch.written.ids, None), batch.written.mask
    else:
        vectors = model.project(*model.encode_audio(**batch.audio)).pooler_output
        embeddings, mask = model.embed(batch.spoken.ids, vectors), batch.spoken.mask
    output = model.language_model.base_model(
        inputs_embeds=embeddings, attention_mask=mask, use_cache=False, output_hidden_states=True
    )
    states: tuple[torch.Tensor, ...] = output.hidden_states
    return states


def content_masks(batch: Batch, audio_token_id: int) -> dict[Side, torch.Tensor]:
    """Where the prompts differ, (B, L) each: the speech vectors in the spoken, the transcript's in the written one.

    4 5 A A A 8 9 7 7     spoken: A stands for a speech vector, 7 7 is the response
    4 5 1 2 8 9 7 7       written: what is left of it between the 4 5 and the 8 9 7 7 of both is the transcript, 1 2
    """
    spoken = (batch.spoken.ids == audio_token_id) & batch.spoken.mask.bool()
    written = torch.zeros_like(batch.written.mask, dtype=torch.bool)
    lengths = zip(batch.spoken.mask.sum(-1).tolist(), batch.written.mask.sum(-1).tolist(), strict=True)
    for row, (heard, read) in enumerate(lengths):
        one, other = batch.spoken.ids[row, :heard].tolist(), batch.written.ids[row, :read].tolist()
        before, after = _common(one, other), _common(one[::-1], other[::-1])
        written[row, before : read - after] = True
    return {"spoken": spoken, "written": written}


def _batch_states(model: Any, batch: Batch, side: Side, places: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The three kinds of States of one batch: (K, places, D), (K, B, D), (K, B, D)."""
    prompted = batch.spoken if side == "spoken" else batch.written
    first = prompted.predicts.int().argmax(-1)
    rows = torch.repeat_interleave(torch.arange(len(places)), torch.tensor([len(some) for some in places]))
    columns = torch.from_numpy(np.concatenate(places)) + first.cpu()[rows]
    content = content_masks(batch, model.config.audio_token_id)[side]
    weights = content / content.sum(-1, keepdim=True)
    responses, means, ends = [], [], []
    for layer in hidden_states(model, batch, side):
        responses.append(_array(layer[rows.to(layer.device), columns.to(layer.device)]))
        means.append(_array(torch.einsum("bl,bld->bd", weights.to(layer.device), layer.float())))
        ends.append(_array(layer[torch.arange(len(places), device=layer.device), first.to(layer.device)]))
    return [np.stack(some) for some in (responses, means, ends)]


def _places(lengths: Sequence[int], seed: int, places: int) -> list[np.ndarray]:
    """For each utterance which places of its response are taken: so many of all together, at random."""
    total = sum(lengths)
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(total, places), replace=False))
    edges = np.concatenate([[0], np.cumsum(lengths)])
    return [chosen[(chosen >= start) & (chosen < end)] - start for start, end in pairwise(edges)]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(one), len(other)))


def _array(states: torch.Tensor) -> np.ndarray:
    return states.float().cpu().numpy()
