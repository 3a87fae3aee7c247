"""The training loop: AdamW on the adapter, one optimiser step a global batch, over any number of processes."""

import math
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from blsp.errors import BlspError
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.training.checkpoint import Checkpoints, Progress
from blsp.training.examples import Collator, Example, with_others
from blsp.training.loader import Work, batches_ahead
from blsp.training.objective import AlignmentObjective
from blsp.training.plan import Choice, Plan

if TYPE_CHECKING:
    from blsp.params import Train

LOG_EVERY_STEPS = 10


def train_adapter(
    model: BlspForConditionalGeneration,
    collator: Collator,
    plan: Plan,
    example: Callable[[Choice], Example],
    dev: Mapping[str, Sequence[list[Example]]],
    settings: "Train",
    checkpoints: Checkpoints,
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """Train the model's adapter for `settings.steps` steps of `plan`, and leave in it the best seen on dev.

    `dev` has batches of each behaviour's utterances. The best is what has come the greatest share of the way from
    another's speech to text there (`dev_share`).
    A run that was stopped goes on from its checkpoint, bit for bit on one process, and logs again what it had
    logged. Every LOG_EVERY_STEPS steps `log` gets the step and its figures; every `validate_every` steps, and at
    the end, `behaviour_gap` on `dev` too, unless that is empty. SIGTERM and SIGINT save a checkpoint and exit.
    Raises BlspError on a loss that is not finite, before the update, with the utterances that gave it.
    """
    accelerator = Accelerator(
        mixed_precision="bf16" if settings.precision == "bfloat16" else "no", cpu=not torch.accelerator.is_available()
    )
    adapter = model.multi_modal_projector
    optimizer = torch.optim.AdamW(parameter_groups(adapter, settings.weight_decay), lr=settings.lr)
    objective = AlignmentObjective(model, settings.objective, settings.temperature, settings.teacher, collator.prefixes)
    model.train()
    progress = checkpoints.load(adapter, optimizer) or Progress(0, [], None)
    if accelerator.is_main_process:
        for record in progress.records:
            log(int(record["step"]), {name: value for name, value in record.items() if name != "step"})
    meter = _Meter(accelerator, progress.records[-1]["elapsed_s"] if progress.records else 0.0)
    records, best = list(progress.records), progress.best
    measured_on = dev_pairs(dev)
    with (
        _interrupts() as stop,
        tqdm(
            total=settings.steps,
            initial=progress.step,
            desc="train",
            unit="step",
            mininterval=2,
            disable=not accelerator.is_main_process,
        ) as bar,
    ):
        for work in batches_ahead(plan, example, collator, settings, progress.step):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * rate_at(work.step, settings.warmup_steps, settings.steps)
            loss, gradient_norm = _step(objective, adapter, accelerator, work, settings, meter)
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
            done = work.step + 1
            measure = bool(measured_on) and (done % settings.validate_every == 0 or done == settings.steps)
            if measure or done % LOG_EVERY_STEPS == 0 or done == settings.steps:
                rate = optimizer.param_groups[0]["lr"]
                figures = {"loss": loss, "lr": rate, "gradient_norm": gradient_norm, **meter.figures()}
                if measure:
                    figures |= behaviour_gap(objective, collator, measured_on, settings.shares, accelerator)
                    if best is None or figures["dev_share"] > best:
                        best = figures["dev_share"]
                        if accelerator.is_main_process:
                            checkpoints.keep_best(model.adapter_state())
                records.append({"step": done, **figures})
                bar.set_postfix_str(_summary(figures), refresh=False)
                if accelerator.is_main_process:
                    log(done, figures)
                meter.restart()
            stopping = _any(stop.requested, accelerator)
            if stopping or done % settings.checkpoint_every == 0:
                checkpoints.save(adapter, optimizer, Progress(done, records, best))
            if stopping:
                raise BlspError(f"train: stopped after step {done} of {settings.steps}; run it again to go on")
    if (weights := checkpoints.best()) is not None:
        model.load_state_dict(weights, strict=False)


def _step(
    objective: AlignmentObjective,
    adapter: torch.nn.Module,
    accelerator: Accelerator,
    work: Work,
    settings: "Train",
    meter: "_Meter",
) -> tuple[float, float]:
    """The loss of a global batch and the gradient's norm; the gradients are there, the update is not yet made."""
    losses = []
    for batch, counts in zip(work.batches, work.counts, strict=True):
        with accelerator.autocast():
            loss = objective(batch.to(accelerator.device)) * (counts / work.targets)
        loss.backward()
        losses.append(loss.detach())
    meter.count(work)
    # The adapter comes last in the backward pass: no computation is left to hide this behind, as DDP would.
    for parameter in filter(lambda p: p.requires_grad, adapter.parameters()):
        parameter.grad = accelerator.reduce(parameter.grad, reduction="sum")
    norm = float(torch.nn.utils.clip_grad_norm_(adapter.parameters(), settings.clip_norm))
    total = float(accelerator.reduce(torch.stack(losses).sum(), reduction="sum"))
    if not (math.isfinite(norm) and math.isfinite(total)):
        pairs = list(zip(losses, work.batches, strict=True))
        broken = [name for loss, batch in pairs if not math.isfinite(loss) for name in batch.ids]
        everyone = gather_object(broken) or gather_object([name for _, batch in pairs for name in batch.ids])
        names = ", ".join(sorted(everyone))
        raise BlspError(
            f"train: the loss is {total} and the gradient's norm {norm}, on the utterances {names}; "
            "listen to them, or lower train.lr. The last checkpoint is kept"
        )
    return total, norm


class DevBatch(NamedTuple):
    """Some utterances of dev with what the LLM wrote for a behaviour, and the same with the speech of others."""

    behaviour: str
    own: list[Example]
    other: list[Example]


def dev_pairs(dev: Mapping[str, Sequence[list[Example]]]) -> list[DevBatch]:
    """The batches on which the gap is measured; a behaviour with nobody else's speech to hear has none."""
    pairs = []
    for behaviour, batches in dev.items():
        others = iter(with_others([example for batch in batches for example in batch]))
        pairs += [DevBatch(behaviour, own, other) for own in batches if (other := list(islice(others, len(own))))]
    return pairs


def behaviour_gap(
    objective: AlignmentObjective,
    collator: Collator,
    pairs: Sequence[DevBatch],
    shares: Mapping[str, float],
    accelerator: Accelerator,
) -> dict[str, float]:
    """The gap on dev, each behaviour weighted by its share of the training batches.

    `dev_kl` in nats a token; `dev_top1`, the share of tokens with the same most likely choice; `dev_share`, the share
    of the way from another's speech to text, 1 - KL(text || speech) / KL(text || another's speech);
    `dev_content_share`, the same over the tokens that depend on the content, where there are any.

    The processes share the batches. Each computes as many, as a sharded LLM asks for: some an empty-handed one.
    """
    model, was_training = objective.model, objective.model.training
    model.eval()
    behaviours = list(dict.fromkeys(pair.behaviour for pair in pairs))
    sums = torch.zeros(len(behaviours), 2, 6, dtype=torch.float64)
    for start in range(0, len(pairs), accelerator.num_processes):
        mine = start + accelerator.process_index
        pair = pairs[min(mine, len(pairs) - 1)]
        batch, other = (collator(examples).to(accelerator.device) for examples in (pair.own, pair.other))
        gap = objective.divergence(batch, other)
        if mine < len(pairs):
            own = [torch.stack([part.sum() for part in vars(gap[name]).values()]) for name in ("speech", "other")]
            sums[behaviours.index(pair.behaviour)] += torch.stack(own).double().cpu()
    model.train(was_training)
    reduced = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum").double().cpu()
    weights = torch.tensor([shares[name] for name in behaviours], dtype=torch.float64)
    speech, other = reduced[:, 0].T, reduced[:, 1].T
    kl, agreement, tokens, content_kl, _, content_tokens = speech

    def mean(values: torch.Tensor, of: torch.Tensor) -> float:
        return float((values * weights)[of].sum() / weights[of].sum())

    every, some = tokens > 0, content_tokens > 0
    figures = {
        "dev_kl": mean(kl / tokens, every),
        "dev_top1": mean(agreement / tokens, every),
        "dev_share": mean(1 - kl / other[0], every),
    }
    return figures | ({"dev_content_share": mean(1 - content_kl / other[3], some)} if some.any() else {})


def rate_at(step: int, warmup_steps: int, steps: int) -> float:
    """The share of the peak learning rate at a step, from 0: linear warm-up, then linear decay to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (steps - step) / max(steps - warmup_steps, 1)


class _Meter:
    """What was computed since the last record, over all processes."""

    def __init__(self, accelerator: Accelerator, elapsed_s: float) -> None:
        self.accelerator, self.started = accelerator, time.perf_counter() - elapsed_s
        self.restart()

    def restart(self) -> None:
        self.since, self.sums = time.perf_counter(), torch.zeros(4, dtype=torch.float64)

    def count(self, work: Work) -> None:
        counted = [batch for batch, counts in zip(work.batches, work.counts, strict=True) if counts]
        tokens, audio_s = sum(len(batch.targets) for batch in counted), sum(batch.audio_s for batch in counted)
        self.sums += torch.tensor([tokens, audio_s, work.needed, work.cost])

    def figures(self) -> dict[str, float]:
        sums = self.sums.float().to(self.accelerator.device)
        tokens, audio_s, needed, cost = self.accelerator.reduce(sums, reduction="sum").tolist()
        now = time.perf_counter()
        return {
            "tokens_per_s": tokens / (now - self.since),
            "audio_s_per_s": audio_s / (now - self.since),
            "padding_share": 1 - needed / cost,
            "peak_memory_gib": peak_memory_gib(),
            "elapsed_s": now - self.started,
        }


def peak_memory_gib() -> float:
    """The most memory this process has held: the accelerator's where there is one, else its own, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _summary(figures: dict[str, float]) -> str:
    gap = (
        f", dev KL {figures['dev_kl']:.3f}, share {figures['dev_share']:.3f}, top-1 {figures['dev_top1']:.3f}"
        if "dev_kl" in figures
        else ""
    )
    return (
        f"loss {figures['loss']:.3f}{gap}, {figures['audio_s_per_s'] / 3600:.3f} audio h/s, "
        f"{figures['tokens_per_s']:.0f} tokens/s, padding {figures['padding_share']:.0%}, "
        f"{figures['peak_memory_gib']:.1f} GiB"
    )


@contextmanager
def _interrupts() -> Iterator[SimpleNamespace]:
    """`requested` becomes true at SIGTERM or SIGINT, instead of the process's end."""
    state = SimpleNamespace(requested=False)

    def heed(*_: object) -> None:
        state.requested = True

    before = {number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _any(flag: bool, accelerator: Accelerator) -> bool:
    """Whether the flag is set on any process: all stop at the same step, or none."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum") > 0)


def parameter_groups(adapter: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and kernels; none on biases and norms."""
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
