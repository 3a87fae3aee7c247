"""Prompts with their responses, and where the tokens of a response are predicted. Axes: B prompts, L tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, eq=False)
class Prompted:
    """Prompts with their responses, padded on the right, and where the response's tokens are predicted.

    4 5 6 7 8 9 .     ids (B, L): the prompt 4 5 6, the response 7 8 9, `.` is padding
        ^ ^ ^         predicts (B, L): the logits at these positions are for 7, 8, 9
    """

    ids: torch.Tensor
    mask: torch.Tensor
    predicts: torch.Tensor


def prompted(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Prompted:
    """Prompts (B rows of token ids) each with its response, on the CPU."""
    rows = [torch.tensor([*prompt, *response]) for prompt, response in zip(prompts, responses, strict=True)]
    ids = pad_sequence(rows, batch_first=True)
    at = torch.arange(ids.shape[1])
    starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    return Prompted(ids, mask=(at < ends).long(), predicts=(at >= starts - 1) & (at < ends - 1))


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Positions (B, L) that count the real tokens of a mask (B, L) only."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
