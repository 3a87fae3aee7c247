"""The teacher's distribution beside each token that it wrote, so that training needs no pass of it.

Kept are the K most likely tokens and K draws from all others. Those alone would not do: at a training temperature of 2
the thousands of others hold much of the probability, and what is lumped together cannot be told apart.

Axes: B answers, L tokens, N tokens of all answers, K most likely tokens, V vocabulary.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from blsp.model.decoding import Answer, chunk_rows, logits_of
from blsp.model.responses import prompted

SMALLEST_MASS = 1e-30  # where all tokens are among the most likely ones, nothing is left to draw


@torch.inference_mode()
def kept_logprobs(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], answers: Sequence[Answer], k: int, temperature: float
) -> list[tuple[list[list[int]], list[list[float]]]]:
    """For each answer ids and log-probabilities (L, 2K), at `temperature`, of what `keep` keeps at each of its tokens.

    They are computed in one forward over prompt and answer. What is drawn depends on the answer alone.
    """
    read = prompted(prompt_ids, [a.token_ids for a in answers])
    ids, mask, predicts = (tensor.to(model.device) for tensor in (read.ids, read.mask, read.predicts))
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[predicts]
    numbers = torch.cat([_numbers(a.token_ids, k) for a in answers]).to(model.device)
    kept = [
        keep(logits_of(model, chunk), k, temperature, own)
        for chunk, own in zip(*(tensor.split(chunk_rows(model)) for tensor in (states, numbers)), strict=True)
    ]
    counts = [len(a.token_ids) for a in answers]
    kept_ids, logprobs = (torch.cat(parts).cpu().split(counts) for parts in zip(*kept, strict=True))
    return [
        (i.tolist(), [[float(f"{x:.6g}") for x in row] for row in p.tolist()])
        for i, p in zip(kept_ids, logprobs, strict=True)
    ]


def keep(logits: torch.Tensor, k: int, temperature: float, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids and log-probabilities (N, 2K) of the `k` most likely tokens and of `k` drawn from all others.

    Any of the others may be drawn, and again, in proportion to its probability; the log-probability of what is drawn is
    that among the others. `numbers` (N, K) are random, 0 to 1.
    """
    logprobs = (logits.float() / temperature).log_softmax(-1)
    top = logprobs.topk(k)
    ends = logprobs.exp().scatter(-1, top.indices, 0.0).double().cumsum(-1)
    drawn = torch.searchsorted(ends, numbers * ends[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    among_others = logprobs.gather(-1, drawn) - ends[:, -1:].clamp(min=SMALLEST_MASS).log().float()
    return torch.cat([top.indices, drawn], dim=-1), torch.cat([top.values, among_others], dim=-1)


def _numbers(token_ids: Sequence[int], k: int) -> torch.Tensor:
    """Random numbers from 0 to 1 (L, K), always the same for the same answer."""
    seed = zlib.crc32(np.asarray(token_ids, dtype=np.int64).tobytes())
    return torch.from_numpy(np.random.default_rng(seed).random((len(token_ids), k)))
