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

# A token depends on the content where the LLM predicts it otherwise when it reads another utterance's transcript in
# place of the true one: KL(text || another's text) above so many nats. docs/evaluation.md tells why so many.
CONTENT_NATS = 0.1
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
    likely token, `tokens` the number of positions. `content_...` are the same over the positions alone whose
    prediction depends on what was said: see CONTENT_NATS.
    """

    kl: torch.Tensor
    agreement: torch.Tensor
    tokens: torch.Tensor
    content_kl: torch.Tensor
    content_agreement: torch.Tensor
    content_tokens: torch.Tensor


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
    def divergence(self, batch: Batch, other: Batch | None = None, untrained: Any = None) -> dict[str, Divergence]:
        """The behaviour gap of the batch's utterances at temperature 1, and its floors where they are asked for.

        {"speech": hearing the utterance itself, "other": hearing another's speech, "untrained": hearing the utterance
        through this adapter}. `other` is the batch with the speech and the transcripts of others (`with_others`);
        without it nobody knows what depends on the content, and `content_tokens` is 0.
        """
        heard = {"speech": self.spoken_states(batch)}
        if other is not None:
            heard["other"] = self.spoken_states(other)
        if untrained is not None:
            with self.model.hearing_through(untrained):
                heard["untrained"] = self.spoken_states(batch)
        sums = {name: torch.zeros(len(batch.ids), 6, device=batch.targets.device) for name in heard}
        read = self.written_states(batch)
        misread = read if other is None else self.written_states(other)
        chunks = map(self._chunks, (read, misread, *heard.values()))
        for utterance, right, wrong, *hearing in zip(self._chunks(batch.utterance), *chunks, strict=True):
            text = log_softmax(self._logits(right).float(), -1)
            depends = _kl(text, log_softmax(self._logits(wrong).float(), -1)) > CONTENT_NATS
            for name, states in zip(heard, hearing, strict=True):
                speech = log_softmax(self._logits(states).float(), -1)
                same = (speech.argmax(-1) == text.argmax(-1)).float()
                counts = torch.stack([_kl(text, speech), same, torch.ones_like(same)], dim=-1)
                sums[name].index_add_(0, utterance, torch.cat([counts, counts * depends[:, None]], dim=-1))
        return {name: Divergence(*total.unbind(-1)) for name, total in sums.items()}

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


def _kl(text: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(text || other) in nats at each position (N,), of log-probabilities (N, V)."""
    return kl_div(other, text, reduction="none", log_target=True).sum(-1)


class _WithGradient(torch.autograd.Function):
    """A loss of which the gradient by the states (N, D) is known already."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return outer * ctx.saved_tensors[0], None, None
