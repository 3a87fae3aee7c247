"""The training loop: AdamW on the adapter, one optimiser step a batch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from blsp.errors import BlspError
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.training.examples import Collator, Example
from blsp.training.objective import AlignmentObjective

if TYPE_CHECKING:
    from blsp.params import Train

LOG_EVERY_STEPS = 10


def train_adapter(
    model: BlspForConditionalGeneration,
    collator: Collator,
    batches: Iterator[list[Example]],
    dev: Sequence[list[Example]],
    settings: "Train",
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """Nothing; the model's adapter is trained for `settings.steps` steps on `batches`.

    Every LOG_EVERY_STEPS steps `log` gets the step and its figures; every `validate_every` steps, and at the end,
    the behaviour gap on `dev` too, unless that is empty. Raises BlspError on a non-finite loss, before the update.
    """
    accelerator = Accelerator()
    adapter = model.multi_modal_projector
    optimizer = torch.optim.AdamW(_parameter_groups(adapter, settings.weight_decay), lr=settings.lr)
    schedule = get_linear_schedule_with_warmup(optimizer, settings.warmup_steps, settings.steps)
    objective = AlignmentObjective(model, settings.objective, settings.temperature)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    model.train()
    started = time.perf_counter()
    tokens_since, audio_s_since, since = 0, 0.0, started
    with tqdm(total=settings.steps, desc="train", unit="step", mininterval=2) as progress:
        for step in range(1, settings.steps + 1):
            batch = collator(next(batches))
            tokens = batch.is_response.sum()
            all_tokens = accelerator.reduce(tokens, reduction="sum")
            # DDP averages gradients over processes; the loss is to be their sum over all tokens.
            loss = objective(batch) * accelerator.num_processes / all_tokens
            if not math.isfinite(loss.item()):
                raise BlspError(
                    f"train: the loss is {loss.item()} at step {step}, on the utterances {', '.join(batch.ids)}; "
                    "listen to them, or lower train.lr"
                )
            accelerator.backward(loss)
            gradient_norm = accelerator.clip_grad_norm_(adapter.parameters(), settings.clip_norm)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            tokens_since, audio_s_since = tokens_since + int(tokens), audio_s_since + batch.audio_s
            progress.update()
            if step % LOG_EVERY_STEPS and step % settings.validate_every and step != settings.steps:
                continue
            now = time.perf_counter()
            figures = {
                "loss": loss.item(),
                "lr": learning_rate,
                "gradient_norm": float(gradient_norm),
                "tokens_per_s": tokens_since / (now - since),
                "audio_s_per_s": audio_s_since / (now - since),
                "elapsed_s": now - started,
            }
            if dev and (step % settings.validate_every == 0 or step == settings.steps):
                figures |= behaviour_gap(model, collator, dev)
                progress.set_postfix(
                    {key: f"{figures[key]:.3f}" for key in ("loss", "dev_kl", "dev_top1")}, refresh=False
                )
            log(step, figures)
            tokens_since, audio_s_since, since = 0, 0.0, time.perf_counter()


def behaviour_gap(
    model: BlspForConditionalGeneration, collator: Collator, batches: Iterable[list[Example]]
) -> dict[str, float]:
    """dev_kl in nats a token and dev_top1, the share of tokens with the same most likely choice."""
    objective = AlignmentObjective(model)
    was_training = model.training
    model.eval()
    kl = agreement = tokens = 0.0
    for examples in batches:
        gap = objective.divergence(collator(examples))
        kl, agreement, tokens = (
            kl + gap.kl.sum().item(),
            agreement + gap.agreement.sum().item(),
            tokens + gap.tokens.sum().item(),
        )
    model.train(was_training)
    return {"dev_kl": kl / tokens, "dev_top1": agreement / tokens}


def _parameter_groups(adapter: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and kernels; none on biases and norms."""
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
