"""What a stored teacher loses: the loss and its gradient from what is stored, against the live teacher's.

    python -m benchmarks.stored_teacher [--utterances 400]

Run in a workspace whose adapter is trained (`make demo`): the dev split, the trained adapter and a fresh one. `loss`
and `norm` are the stored teacher's over the live one's, `cosine` is between the two gradients of the adapter, means
over batches; `whole_norm` and `whole_cosine` are of the gradient over all batches. `stored` is what `train.teacher:
stored` does with K likeliest tokens and K draws; `top` is what it did before: K likeliest tokens at temperature 1, the
rest lumped together. benchmarks.stored_teacher_tails has large vocabularies. The last line is JSON; what it said, and
when, is in benchmarks/LOG.md.

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

from blsp.continuation.teacher import keep
from blsp.data.batches import evaluation_batches
from blsp.model import BlspForConditionalGeneration, BlspProcessor
from blsp.model.responses import Prompted
from blsp.params import load_params
from blsp.training.examples import Batch, Collator
from blsp.training.objective import AlignmentObjective, kd_loss
from blsp.training.train import ADAPTER_DIR, new_config

STORED_TOKENS = (5, 20, 50)
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
    """As training computed it before: K + 1 outcomes, the rest lumped before the temperature."""
    return lumped_kd_loss(student_logits(model, batch), teacher, k, temperature)


def lumped_kd_loss(student: torch.Tensor, teacher: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """The sum of KL on the teacher's K most likely tokens and "any other"; logits (N, V)."""
    top = log_softmax(teacher, -1).topk(k)
    p, q = (
        torch.cat([some, torch.log1p(-some.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))], -1)
        for some in (top.values, log_softmax(student, -1).gather(-1, top.indices))
    )
    return kd_loss(q, p, temperature)


def stored_loss(
    model: BlspForConditionalGeneration, teacher: torch.Tensor, k: int, temperature: float, batch: Batch
) -> Any:
    """As training computes it from what is kept."""
    ids, logprobs = keep(teacher, k, temperature, torch.rand(len(teacher), k))
    stored = replace(batch, kept_ids=ids, kept_logprobs=logprobs)
    return AlignmentObjective(model, "kd", temperature, "stored")(stored)


ESTIMATORS = {"top": top_loss, "stored": stored_loss}


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
    live_loss, tokens, whole = 0.0, 0, torch.zeros(())
    wholes: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for batch in batches:
        with torch.no_grad():
            teacher = logits(model, batch.written, None)
        live, expected = loss_and_gradient(model, AlignmentObjective(model, "kd", temperature, "live"), batch)
        live_loss, tokens = live_loss + live, tokens + len(batch.targets)
        whole = whole + expected
        for (name, estimator), k in itertools.product(ESTIMATORS.items(), STORED_TOKENS):
            value, found = loss_and_gradient(model, partial(estimator, model, teacher, k, temperature), batch)
            row = sums[f"{name}_{k}"]
            row["loss"] += value
            wholes[f"{name}_{k}"] = wholes[f"{name}_{k}"] + found
            row["cosine"] += torch.cosine_similarity(found, expected, dim=0).item() / len(batches)
            row["norm"] += (found.norm() / expected.norm()).item() / len(batches)
    figures = {
        name: {
            **row,
            "loss": row["loss"] / live_loss,
            "whole_cosine": torch.cosine_similarity(wholes[name], whole, dim=0).item(),
            "whole_norm": (wholes[name].norm() / whole.norm()).item(),
        }
        for name, row in sums.items()
    }
    return {"live": {"tokens": tokens, "nats_a_token": live_loss / tokens / temperature**2}, **figures}


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
