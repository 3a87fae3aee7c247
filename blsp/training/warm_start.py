"""A warm start for the adapter: CTC against the transcript's tokens, over the LLM's own embeddings.

No pass of the LLM is needed: the logit of a token at a speech vector is minus their squared distance, so minutes bring
the vectors to the words that they stand for, and behaviour alignment goes on from there. It is a start and not the
method: `train.warm_start: null` begins cold, as the paper does.

Axes: B utterances, S encoder frames, A adapter frames, D LLM width, W distinct tokens; class 0 is the blank, class 1
the first of them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import ctc_loss, dropout, logsigmoid
from tqdm import tqdm

from blsp.errors import BlspError
from blsp.model.adapter import WordAdapter, nearness
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.training.checkpoint import Checkpoints, Progress
from blsp.training.examples import Collator, Example
from blsp.training.loop import parameter_groups
from blsp.training.plan import Choice, Plan

LR = 2.0e-3
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
DROPOUT = 0.1  # of encoder frames and of speech vectors
NEGATIVES = 2048  # words told apart from those of a batch, drawn anew for each: more teach the same, and cost as much
SHARPENED = 2.0  # times: an LLM reads fewer embeddings at once better than CTC is sure of (benchmarks/LOG.md)
LOG_EVERY_STEPS = 10


class CtcHead(nn.Module):
    """The adapter, and what CTC needs beside one that is no WordAdapter: how sharp distances are, a blank's embedding.

    `variance` is that of the LLM's embeddings, of width `width`.
    """

    def __init__(self, adapter: nn.Module, variance: float, width: int) -> None:
        super().__init__()
        self.adapter, self.variance = adapter, variance
        if not isinstance(adapter, WordAdapter):
            self.own_log_sharpness = nn.Parameter(torch.zeros(()))
            self.blank = nn.Parameter(torch.zeros(width))
            self.blank_bias = nn.Parameter(torch.zeros(1))
        nn.init.constant_(self.log_sharpness, -math.log(variance * math.sqrt(width)))

    @property
    def log_sharpness(self) -> nn.Parameter:
        """That of a WordAdapter, which needs it afterwards too; of any other the head's own."""
        return self.adapter.log_sharpness if isinstance(self.adapter, WordAdapter) else self.own_log_sharpness

    def forward(
        self, frames: torch.Tensor, counts: torch.Tensor, words: torch.Tensor, targets: Sequence[Sequence[int]]
    ) -> dict[str, torch.Tensor]:
        """The losses of utterances: frames (B, S, E), their counts (B,), and the classes of each one's tokens.

        `words` (W, D) are the embeddings of the classes from 1 on.

        `ctc`, in nats a token; and `pull`, the squared distance of vectors to the words expected there, in units of the
        words' variance: of a WordAdapter the LLM gets these words, but of any other the vectors themselves.
        """
        adapter, frames = self.adapter, dropout(frames, DROPOUT)
        if isinstance(adapter, WordAdapter):
            vectors, lengths = adapter.vectors(frames, counts)
            marks = adapter.mark_logits(frames, counts)[..., None]
            near = nearness(dropout(vectors, DROPOUT), words, self.log_sharpness)
            logprobs = torch.cat([logsigmoid(-marks), logsigmoid(marks) + near.log_softmax(-1)], dim=-1)
            return {"ctc": _ctc(logprobs, lengths, targets)}
        vectors, lengths = adapter(frames, counts)
        heard = dropout(vectors, DROPOUT)
        blank = (heard @ self.blank)[..., None] * self.log_sharpness.exp() + self.blank_bias
        logprobs = torch.cat([blank, nearness(heard, words, self.log_sharpness)], dim=-1).log_softmax(-1)
        p = logprobs.detach().exp()
        p_word = (1 - p[..., 0]) * (torch.arange(vectors.shape[1], device=vectors.device) < lengths[:, None])
        expected = p[..., 1:] @ words / (1 - p[..., :1]).clamp(min=1e-6)
        distance = (vectors - expected).square().mean(-1) / self.variance
        pull = (p_word * distance).sum() / p_word.sum().clamp(min=1)
        return {"ctc": _ctc(logprobs, lengths, targets), "pull": pull}


def _ctc(logprobs: torch.Tensor, lengths: torch.Tensor, targets: Sequence[Sequence[int]]) -> torch.Tensor:
    sizes = torch.tensor([len(one) for one in targets], device=lengths.device)
    classes = torch.tensor([word for one in targets for word in one], device=lengths.device)
    # Speech faster than a token a vector has no path: it teaches nothing here.
    return ctc_loss(logprobs.transpose(0, 1), classes, lengths, sizes, zero_infinity=True)


def warm_start(
    model: BlspForConditionalGeneration,
    collator: Collator,
    plan: Plan,
    example: Callable[[Choice], Example],
    transcripts: Sequence[str],
    steps: int,
    checkpoints: Checkpoints,
    checkpoint_every: int,
) -> float:
    """Train the model's adapter with CTC for `steps` batches of `plan`; the seconds it took, over all its runs.

    `transcripts` are all that `example` may draw.

    Every process computes the whole of each batch, and all come to the same. A run that was stopped goes on from its
    last checkpoint. Raises BlspError on a loss that is not finite, before the update.
    """
    tokenizer = collator.processor.tokenizer
    token_ids = {text: tokenizer(" " + text, add_special_tokens=False).input_ids for text in set(transcripts)}
    inventory = torch.tensor(sorted({token for ids in token_ids.values() for token in ids}))
    device, embeddings = model.device, model.get_input_embeddings()
    with torch.no_grad():
        words = embeddings(inventory.to(device)).float()
        adapter = model.multi_modal_projector
        if isinstance(adapter, WordAdapter):
            space = tokenizer(" ", add_special_tokens=False).input_ids
            adapter.filler.copy_(embeddings(torch.tensor(space, device=device)).float().mean(0))
            adapter.known.zero_()
            adapter.known[inventory] = True
    head = CtcHead(adapter, float(words.var()), words.shape[1]).to(device)
    parameters = list(head.parameters())
    optimizer = torch.optim.AdamW(parameter_groups(head, WEIGHT_DECAY), lr=LR)
    progress = checkpoints.load(head, optimizer) or Progress(0, [], None)
    before_s = progress.records[-1]["elapsed_s"] if progress.records else 0.0
    started = time.perf_counter()
    head.train()
    with tqdm(total=steps, initial=progress.step, desc="warm start", unit="step", mininterval=2) as bar:
        for step in range(progress.step, steps):
            for group in optimizer.param_groups:
                group["lr"] = LR * _rate_at(step, steps)
            examples = [example(choice) for choice in plan.batch(step)]
            audio = collator.audio(examples)
            if "frames" not in audio:
                audio = dict(zip(("frames", "counts"), model.encode_audio(**audio), strict=True))
            frames, counts = audio["frames"].to(device).float(), audio["counts"].to(device)
            chosen, targets = _classes([token_ids[e.transcript] for e in examples], inventory)
            losses = head(frames, counts, words[chosen.to(device)], targets)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                names = ", ".join(e.id for e in examples)
                raise BlspError(f"train: the warm start's loss is {float(loss.detach())}, on the utterances {names}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            bar.update()
            if (step + 1) % LOG_EVERY_STEPS == 0:
                bar.set_postfix_str(_summary(losses), refresh=False)
            if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                elapsed_s = before_s + time.perf_counter() - started
                record = {"step": step + 1, "elapsed_s": elapsed_s}
                checkpoints.save(head, optimizer, Progress(step + 1, [record], None))
    if isinstance(head.adapter, WordAdapter):
        head.adapter.fix_segmenter()
        with torch.no_grad():
            head.adapter.log_sharpness.add_(math.log(SHARPENED))
    return before_s + time.perf_counter() - started


def _classes(token_ids: Sequence[Sequence[int]], inventory: torch.Tensor) -> tuple[torch.Tensor, list[list[int]]]:
    """Where the words of a batch stand in the sorted inventory, NEGATIVES others after them, and its targets."""
    own = torch.searchsorted(inventory, torch.tensor(sorted({token for ids in token_ids for token in ids})))
    others = torch.randperm(len(inventory))
    others = others[~torch.isin(others, own)][:NEGATIVES]
    class_of = {int(inventory[place]): number for number, place in enumerate(own.tolist(), start=1)}
    return torch.cat([own, others]), [[class_of[token] for token in ids] for ids in token_ids]


def _rate_at(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step, from 0: linear warm-up, then half a cosine to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(steps - WARMUP_STEPS, 1))) / 2


def _summary(losses: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {float(loss.detach()):.3f}" for name, loss in losses.items())
