"""The objective: the LLM that hears must predict as the LLM that reads, at every position of the response.

Axes: B utterances, R response tokens, N real response tokens of a batch, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from blsp.model.modeling import BlspForConditionalGeneration
from blsp.training.examples import Batch, Prompted


def kd_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The sum over positions of KL(teacher || student) at `temperature`, times its square; logits (N, V).

    The square keeps the gradient's size from falling with the temperature (Hinton et al. 2015).
    """
    student = log_softmax(student.float() / temperature, dim=-1)
    teacher = log_softmax(teacher.float() / temperature, dim=-1)
    return kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def ce_loss(student: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """The sum over positions of the cross-entropy of what the LLM wrote; logits (N, V), responses (N,)."""
    return cross_entropy(student.float(), responses, reduction="sum")


@dataclass(frozen=True)
class Divergence:
    """How far behaviour on speech is from behaviour on text, for each utterance of a batch: tensors (B,).

    `kl` is the summed KL(text || speech) in nats, `agreement` the number of positions with the same most
    likely token, `tokens` the number of positions.
    """

    kl: torch.Tensor
    agreement: torch.Tensor
    tokens: torch.Tensor


class AlignmentObjective(nn.Module):
    """The training loss of one batch, wrapped as a module so that accelerate can distribute it."""

    def __init__(
        self,
        model: BlspForConditionalGeneration,
        objective: Literal["kd", "ce"] = "kd",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.temperature = model, objective, temperature

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss summed over the batch's response tokens; the caller divides by their number."""
        student = self._spoken_logits(batch)[batch.is_response]
        if self.objective == "ce":
            return ce_loss(student, batch.responses[batch.is_response])
        return kd_loss(student, self._written_logits(batch)[batch.is_response], self.temperature)

    @torch.no_grad()
    def divergence(self, batch: Batch) -> Divergence:
        """The behaviour gap of the batch's utterances at temperature 1."""
        student = log_softmax(self._spoken_logits(batch).float(), dim=-1)
        teacher = log_softmax(self._written_logits(batch).float(), dim=-1)
        kl = kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        same = student.argmax(-1) == teacher.argmax(-1)
        return Divergence(
            kl=(kl * batch.is_response).sum(-1),
            agreement=(same & batch.is_response).sum(-1),
            tokens=batch.is_response.sum(-1),
        )

    def _spoken_logits(self, batch: Batch) -> torch.Tensor:
        vectors = self.model.project(batch.frames, batch.frame_counts).pooler_output
        return self._response_logits(self.model.embed(batch.spoken.ids, vectors), batch.spoken)

    @torch.no_grad()
    def _written_logits(self, batch: Batch) -> torch.Tensor:
        return self._response_logits(self.model.embed(batch.written.ids, None), batch.written)

    def _response_logits(self, embeddings: torch.Tensor, prompted: Prompted) -> torch.Tensor:
        """Logits (B, R, V) of the response's tokens, each from the position before it."""
        return self.model.language_model(
            inputs_embeds=embeddings, use_cache=False, **prompted.forward_arguments()
        ).logits
