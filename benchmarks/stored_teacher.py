"""What a stored teacher loses: the loss and its gradient from K stored tokens, against the live teacher's.

    python -m benchmarks.stored_teacher [--utterances 400]

Run in a workspace whose adapter is trained (`make demo`): the dev split, the trained adapter and a fresh one. `loss`
and `norm` are the stored teacher's over the live one's, `cosine` is between the two gradients of the adapter, a mean
over batches. Beside what `train.teacher: stored` does (`top`), two estimators that store more: `rest` knows each
position's normaliser at the training temperature, so that the rest has its true mass there; `sampled` spends half of
its K tokens on draws from what is not among the K/2 most likely ones, which makes loss and gradient unbiased. The
last line is JSON; what it said, and when, is in benchmarks/LOG.md.

Axes: N tokens to predict, K tokens kept, V vocabulary.
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import log_softmax

from blsp.data.batches import evaluation_batches
from blsp.model import BlspForConditionalGeneration, BlspProcessor
from blsp.model.responses import Prompted
from blsp.params import load_params
from blsp.training.examples import Batch, Collator
from blsp.training.objective import AlignmentObjective
from blsp.training.train import ADAPTER_DIR, new_config

STORED_TOKENS = (1, 5, 20, 50, 100)
Loss = Callable[[Batch], torch.Tensor]


def logits(model: BlspForConditionalGeneration, prompted: Prompted, vectors: torch.Tensor | None) -> torch.Tensor:
    """Those (N, V) that predict the responses."""
    embeddings = model.embed(prompted.ids, vectors)
    output = model.language_model(inputs_embeds=embeddings, attention_mask=prompted.mask, use_cache=False)
    return output.logits[prompted.predicts].float()


def student_logits(model: BlspForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Of the LLM that hears."""
    frames, counts = model.encode_audio(**batch.audio)
    return logits(model, batch.spoken, model.project(frames, counts).pooler_output)


def top_loss(
    model: BlspForConditionalGeneration, teacher: torch.Tensor, k: int, temperature: float, batch: Batch
) -> Any:
    """As training computes it from stored log-probabilities, which are rounded as they are on disk."""
    top = log_softmax(teacher, -1).topk(k)
    stored = replace(batch, top_ids=top.indices, top_logprobs=(top.values * 1e5).round() / 1e5)
    return AlignmentObjective(model, "kd", temperature, "stored")(stored)


def rest_loss(
    model: BlspForConditionalGeneration, teacher: torch.Tensor, k: int, temperature: float, batch: Batch
) -> Any:
    """KL of the tempered distributions on K + 1 outcomes: the rest is lumped after the temperature, not before."""
    top = log_softmax(teacher / temperature, -1).topk(k)
    student = log_softmax(student_logits(model, batch) / temperature, -1).gather(-1, top.indices)
    p, q = (
        torch.cat([x, torch.log1p(-x.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))], -1)
        for x in (top.values, student)
    )
    return (p.exp() * (p - q)).sum() * temperature**2


def sampled_loss(
    model: BlspForConditionalGeneration, teacher: torch.Tensor, k: int, temperature: float, batch: Batch
) -> Any:
    """KL whose terms beyond the K/2 most likely tokens are estimated from K - K/2 draws among the others."""
    p = log_softmax(teacher / temperature, -1)
    q = log_softmax(student_logits(model, batch) / temperature, -1)
    top = p.topk(k - k // 2).indices
    tail = p.exp().scatter(-1, top, 0.0).clamp(min=1e-30)
    drawn = torch.multinomial(tail, max(k // 2, 1), replacement=True, generator=torch.Generator().manual_seed(0))
    terms = (p.exp() * (p - q)).gather(-1, top).sum() + (tail.sum(-1, keepdim=True) * (p - q).gather(-1, drawn)).mean(
        -1
    ).sum()
    return terms * temperature**2


ESTIMATORS = {"top": top_loss, "rest": rest_loss, "sampled": sampled_loss}


def loss_and_gradient(model: BlspForConditionalGeneration, loss: Loss, batch: Batch) -> tuple[float, torch.Tensor]:
    """The loss, and the adapter's gradient in one row."""
    model.zero_grad()
    value = loss(batch)
    value.backward()
    return value.item(), torch.cat(
        [p.grad.flatten() for p in model.multi_modal_projector.parameters() if p.grad is not None]
    )


def compare(
    model: BlspForConditionalGeneration, batches: list[Batch], temperature: float
) -> dict[str, dict[str, float]]:
    """For the live teacher nats a token, and for each estimator and K how it compares."""
    live_loss, tokens = 0.0, 0
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for batch in batches:
        with torch.no_grad():
            teacher = logits(model, batch.written, None)
        live, expected = loss_and_gradient(model, AlignmentObjective(model, "kd", temperature, "live"), batch)
        live_loss, tokens = live_loss + live, tokens + len(batch.targets)
        for (name, estimator), k in itertools.product(ESTIMATORS.items(), STORED_TOKENS):
            value, found = loss_and_gradient(model, partial(estimator, model, teacher, k, temperature), batch)
            row = sums[f"{name}_{k}"]
            row["loss"] += value
            row["cosine"] += torch.cosine_similarity(found, expected, dim=0).item() / len(batches)
            row["norm"] += (found.norm() / expected.norm()).item() / len(batches)
    figures = {name: {**row, "loss": row["loss"] / live_loss} for name, row in sums.items()}
    return {"live": {"nats_a_token": live_loss / tokens / temperature**2}, **figures}


@torch.no_grad()
def top_mass(model: BlspForConditionalGeneration, batches: list[Batch], temperature: float) -> dict[str, float]:
    """The share of the teacher's probability that its K most likely tokens have."""
    p = torch.cat([log_softmax(logits(model, b.written, None) / temperature, -1).exp() for b in batches])
    return {str(k): p.topk(k).values.sum(-1).mean().item() for k in STORED_TOKENS}


def models() -> Iterator[tuple[str, BlspForConditionalGeneration]]:
    """The workspace's trained adapter and a fresh one."""
    params = load_params()
    trained = BlspForConditionalGeneration.from_pretrained(ADAPTER_DIR)
    yield "trained", trained
    torch.manual_seed(params.train.seed)
    yield "untrained", BlspForConditionalGeneration.from_backbones(new_config(params, trained.config.audio_token_id))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=400, help="at most, of the dev split")
    parser.add_argument("--batch-size", type=int, default=48)
    options = parser.parse_args()
    settings = load_params().train
    processor = BlspProcessor.from_pretrained(ADAPTER_DIR)
    examples = list(itertools.chain(*evaluation_batches("dev", next(iter(settings.shares)), options.batch_size)))
    examples = examples[:: max(len(examples) // options.utterances, 1)][: options.utterances]
    temperatures = sorted({1.0, settings.temperature})
    result: dict[str, Any] = {"utterances": len(examples), "batch_size": options.batch_size}
    for name, model in models():
        collator = Collator(processor)
        rows = [examples[at : at + options.batch_size] for at in range(0, len(examples), options.batch_size)]
        batches = [collator(row) for row in rows]
        for t in temperatures:
            result[f"teacher_mass_in_top_k_temperature_{t:g}"] = top_mass(model, batches, t)
            result[f"{name}_temperature_{t:g}"] = figures = compare(model, batches, t)
            for row, values in figures.items():
                shown = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
                print(f"{name}, temperature {t:g}, {row}: {shown}", flush=True)
    print(json.dumps(_rounded(result)))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
