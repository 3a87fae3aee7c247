"""The objective: the LLM that hears must predict as the LLM that reads, at every position of the response.

Logits are made only where there is a target, and in chunks, so that a vocabulary of 128 k costs no memory. The head is
frozen: all that a chunk gives to the backward pass is the gradient of its states, which is computed at once, so that
no logit is kept or made twice.
Axes: B utterances, L tokens, N tokens to predict, K most likely tokens kept (and K others), D LLM width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from blsp.model.decoding import chunk_rows, logits_of
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.model.responses import Prompted
from blsp.training.examples import Batch
from blsp.training.prefixes import NONE, Prefixes, PrefixReader

SMALLEST_REST = 1e-8  # probability; float32 tells no less from a sum of 1


def kd_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The sum over positions of KL(teacher || student) at `temperature`, times its square; logits (N, V).

    The square keeps the gradient's size from falling with the temperature (Hinton et al. 2015).
    """
    student = log_softmax(student.float() / temperature, dim=-1)
    teacher = log_softmax(teacher.float() / temperature, dim=-1)
    return kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def stored_kd_loss(
    student: torch.Tensor, kept_ids: torch.Tensor, kept_logprobs: torch.Tensor, temperature: float
) -> torch.Tensor:
    """An estimate of `kd_loss` from what is kept of the teacher (N, 2K) at `temperature`; its gradient is one too.

    The first K are its most likely tokens, whose terms are exact; the others were drawn from the rest of the
    vocabulary in proportion to their probability p there, so that neither is biased (Anshumann et al. 2025, Sparse
    Logit Sampling). Their noise would hide a student that is near the teacher: of each draw a share of the student's
    q / p is taken off, whose mean over all draws, the student's mass of the rest, is known (a control variate). The
    best share is mass * mean(q / p) / mean((q / p)^2); the position's other draws estimate it.
    """
    own = log_softmax(student.float() / temperature, dim=-1).gather(-1, kept_ids)
    (top_p, drawn_p), (top_q, drawn_q) = (some.chunk(2, dim=-1) for some in (kept_logprobs, own))
    p_rest, q_rest = ((1 - some.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST_REST) for some in (top_p, top_q))
    ratios = (drawn_q - drawn_p).exp()
    r = ratios.detach()
    others, others_squared = (some.sum(-1, keepdim=True) - some for some in (r, r.square()))
    best = p_rest * others / others_squared.clamp(min=SMALLEST_REST**2)
    share = best.clamp(min=0).minimum((p_rest / q_rest.detach()).clamp(max=1))
    rest = p_rest * (p_rest.log() + drawn_p - drawn_q) + share * (ratios - q_rest)
    return ((top_p.exp() * (top_p - top_q)).sum() + rest.mean(-1).sum()) * temperature**2


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


class AlignmentObjective:
    """The training loss of one batch.

    Under `kd` the teacher is the LLM itself, reading the transcript: `live`, or as `stored` with what it wrote.
    `prefixes` are those that the Collator leaves out of its batches.
    """

    def __init__(
        self,
        model: BlspForConditionalGeneration,
        objective: Literal["kd", "ce"] = "kd",
        temperature: float = 1.0,
        teacher: Literal["live", "stored"] = "live",
        prefixes: Prefixes = NONE,
    ) -> None:
        self.model, self.objective, self.temperature, self.teacher = model, objective, temperature, teacher
        self.reader = PrefixReader(model.language_model, prefixes)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The loss summed over the batch's targets; the caller divides by their number."""
        student = self.spoken_states(batch)
        if self.objective == "ce":
            return self._chunked(lambda s, t: ce_loss(self._logits(s), t), student, batch.targets)
        if self.teacher == "stored":
            assert batch.kept_ids is not None and batch.kept_logprobs is not None
            return self._chunked(
                lambda s, ids, logprobs: stored_kd_loss(self._logits(s), ids, logprobs, self.temperature),
                *(student, batch.kept_ids, batch.kept_logprobs),
            )
        return self._chunked(
            lambda s, t: kd_loss(self._logits(s), self._logits(t), self.temperature),
            student,
            self.written_states(batch),
        )

    @torch.no_grad()
    def divergence(self, batch: Batch) -> Divergence:
        """The behaviour gap of the batch's utterances at temperature 1."""
        kl, same = [], []
        for student, teacher in zip(
            *map(self._chunks, (self.spoken_states(batch), self.written_states(batch))), strict=True
        ):
            spoken, written = self._logits(student).float(), self._logits(teacher).float()
            target = log_softmax(written, -1)
            kl.append(kl_div(log_softmax(spoken, -1), target, reduction="none", log_target=True).sum(-1))
            same.append(spoken.argmax(-1) == written.argmax(-1))
        by_utterance = torch.zeros(len(batch.ids), device=batch.targets.device)
        return Divergence(
            kl=by_utterance.index_add(0, batch.utterance, torch.cat(kl)),
            agreement=by_utterance.index_add(0, batch.utterance, torch.cat(same).float()),
            tokens=by_utterance.index_add(0, batch.utterance, torch.ones_like(batch.targets, dtype=torch.float)),
        )

    def spoken_states(self, batch: Batch) -> torch.Tensor:
        """The LLM's last states (N, D) where it predicts the responses, hearing the speech."""
        audio = batch.audio
        known = "frames" in audio
        frames, counts = (audio["frames"], audio["counts"]) if known else self.model.encode_audio(**audio)
        vectors = self.model.project(frames, counts).pooler_output
        return self._states(self.model.embed(batch.spoken.ids, vectors), batch.spoken, batch.prefix)

    @torch.no_grad()
    def written_states(self, batch: Batch) -> torch.Tensor:
        """The LLM's last states (N, D) where it predicts the responses, reading the transcript."""
        return self._states(self.model.embed(batch.written.ids, None), batch.written, batch.prefix)

    def _states(self, embeddings: torch.Tensor, prompted: Prompted, prefix: torch.Tensor) -> torch.Tensor:
        return self.reader.states(embeddings, prompted.mask, prefix)[prompted.predicts]

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model.language_model, states)

    def _chunks(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tensor.split(chunk_rows(self.model.language_model))

    def _chunked(self, loss: Callable[..., torch.Tensor], states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        total, gradients = states.new_zeros((), dtype=torch.float), []
        for chunk, *rest in zip(*map(self._chunks, (states.detach(), *others)), strict=True):
            with torch.enable_grad():
                value = loss(chunk.requires_grad_(), *rest)
            value.backward()
            gradients.append(chunk.grad)
            total += value.detach()
        return _WithGradient.apply(states, total, torch.cat(gradients))


class _WithGradient(torch.autograd.Function):
    """A loss of which the gradient by the states (N, D) is known already."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return outer * ctx.saved_tensors[0], None, None
