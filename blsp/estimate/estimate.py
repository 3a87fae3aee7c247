"""What training will take, before a weight is there: parameters, memory, the largest micro-batch, hours."""

import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from blsp.estimate.lengths import Lengths
from blsp.estimate.rehearsal import Rehearsal, Stage

if TYPE_CHECKING:
    from blsp.params import Train

GIB = 2**30
USABLE_SHARE = 0.9  # of a device's memory: the rest is for CUDA, its libraries and fragmentation
DEVICES_PER_MACHINE = 8  # an LLM's layers are shared out among those of one machine


@dataclass(frozen=True)
class Device:
    """What one device has: memory as CUDA reports it, and its dense peak in float32 and in bfloat16."""

    memory_gib: float
    float32_tflops: float
    bfloat16_tflops: float


# NVIDIA's own figures. Hopper's datasheets give bfloat16 with sparsity, 1,979: dense is half of that. float32 is that
# of the CUDA cores, since torch multiplies float32 matrices without TF32 unless it is told otherwise.
GPUS = {
    "h200": Device(139, 67, 989),  # H200 Tensor Core GPU datasheet, SXM
    "h100": Device(79, 67, 989),  # H100 Tensor Core GPU datasheet, SXM
    "a100-80": Device(79, 19.5, 312),  # A100 Tensor Core GPU datasheet
    "a100-40": Device(39, 19.5, 312),  # the same
    "l40s": Device(44, 91.6, 362),  # L40S datasheet
    "rtx4090": Device(23.5, 82.6, 165),  # Ada GPU architecture whitepaper, appendix A, with float32 accumulation
}


@dataclass(frozen=True)
class Estimate:
    """What one training run takes on one kind of device.

    `parameters` are counts by part. `resident_bytes` by part live throughout on each device; `micro_batch` is what
    `utterances` of mean length take on top of them. `largest_utterances` are as many as fit (0: not even one), and
    `positions_per_utterance` makes utterances into the units of train.micro_batch_tokens.
    """

    parameters: dict[str, int]
    resident_bytes: dict[str, int]
    utterances: int
    micro_batch: Rehearsal
    largest_utterances: int
    positions_per_utterance: float
    flops_per_step: float
    hours: float

    @property
    def peak_bytes(self) -> int:
        """The most bytes that live at once on a device."""
        return sum(self.resident_bytes.values()) + self.micro_batch.peak_bytes

    @property
    def largest_budget(self) -> int:
        """The largest train.micro_batch_tokens that fits; 0 where none does."""
        return math.ceil(self.largest_utterances * self.positions_per_utterance)


def estimate(
    audio_config: Any,
    text_config: Any,
    settings: "Train",
    lengths: Lengths,
    device: Device,
    devices: int = 1,
    utilisation: float = 0.4,
) -> Estimate:
    """The estimate for a Whisper and a causal LLM of these configurations, with every utterance of mean length.

    `utilisation` is the share of the device's peak that training reaches. Needs no weights and no GPU.
    """
    stage = Stage(audio_config, text_config, settings, lengths)
    model = stage.model
    parts = {"encoder": model.audio_tower, "LLM": model.language_model, "adapter": model.multi_modal_projector}
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    resident = {
        "encoder weights": parameters["encoder"] * stage.dtype.itemsize,
        **_llm_bytes(model.language_model, min(devices, DEVICES_PER_MACHINE) if settings.shard_llm else 1),
        "adapter weights": parameters["adapter"] * 4,
        "adapter gradients and AdamW moments": parameters["adapter"] * 12,
    }
    # As blsp.data.batches counts: a frame costs one forward of the encoder, an LLM position three of the LLM.
    frame_cost = parameters["encoder"] / (3 * parameters["LLM"])
    positions = stage.spoken + stage.frames * frame_cost
    share = max(settings.batch_size // devices, 1)
    utterances = min(max(int(settings.micro_batch_tokens // positions), 1), share)
    micro_batch = stage.rehearse(utterances)
    flops = sum(micro_batch.flops.values()) / utterances * settings.batch_size
    tflops = device.bfloat16_tflops if settings.precision == "bfloat16" else device.float32_tflops
    room = device.memory_gib * GIB * USABLE_SHARE - sum(resident.values())
    return Estimate(
        parameters=parameters,
        resident_bytes=resident,
        utterances=utterances,
        micro_batch=micro_batch,
        largest_utterances=_largest(stage, utterances, room),
        positions_per_utterance=positions,
        flops_per_step=flops,
        hours=flops * settings.steps / (devices * tflops * 1e12 * utilisation) / 3600,
    )


def _llm_bytes(llm: PreTrainedModel, pieces: int) -> dict[str, int]:
    """What a device holds of the LLM: all, or its piece of each layer and two gathered ones (train.shard_llm)."""
    whole = sum(p.nbytes for p in llm.parameters())
    if pieces == 1:
        return {"LLM weights": whole}
    layers = [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]
    layer_bytes = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
    kept = whole - sum(layer_bytes) + sum(layer_bytes) // pieces
    return {"LLM weights": kept, "LLM layers at work": 2 * max(layer_bytes)}


def _largest(stage: Stage, utterances: int, room_bytes: float) -> int:
    """How many utterances at once fit into the room: memory grows by the same bytes with each, but for the loss.

    The loss's chunks stop growing at blsp.model.decoding.CHUNK_LOGITS, so the line is drawn anew near its end.
    """
    here, there = utterances, 2 * utterances
    for _ in range(2):
        before, after = stage.rehearse(here).peak_bytes, stage.rehearse(there).peak_bytes
        fitting = int(there + (room_bytes - after) * (there - here) / (after - before))
        if fitting < 1 or fitting == there:
            break
        here, there = there, fitting
    return max(fitting, 0)


def this_cpu() -> Device:
    """This machine: its memory, and what it reaches in float32 and bfloat16, measured in a moment."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(memory / GIB, _measured_tflops(torch.float32), _measured_tflops(torch.bfloat16))


def _measured_tflops(dtype: torch.dtype, size: int = 512, repeats: int = 3) -> float:
    matrix = torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times) / 1e12


def table(found: Estimate, settings: "Train", device: Device, corpus_utterances: int | None) -> str:
    """The estimate in lines for a terminal: parameters, memory on each device, budget, steps, epochs, hours."""
    micro = found.micro_batch
    lines = ["parameters"]
    lines += [_row(f"  {name}", f"{count:,}") for name, count in found.parameters.items()]
    lines += [f"memory of a device, in GiB, at train.micro_batch_tokens {settings.micro_batch_tokens:,}"]
    lines += [_row(f"  {name}", _gib(count)) for name, count in found.resident_bytes.items()]
    lines += [_row("  kept for the backward pass", _gib(micro.kept_bytes))]
    lines += [_row(f"  for a moment: {phase}", _gib(count)) for phase, count in micro.transient_bytes.items()]
    lines += [_row("  at its peak", _gib(found.peak_bytes), f"of {device.memory_gib:,.1f}")]
    lines += [_row("utterances at once", f"{found.utterances:,}")]
    if found.largest_utterances:
        at_once = f"positions, {found.largest_utterances:,} utterances at once"
        lines += [_row("largest train.micro_batch_tokens", f"{found.largest_budget:,}", at_once)]
    else:
        hint = "not one utterance fits; try train.precision: bfloat16, gradient_checkpointing or shard_llm: true"
        lines += [_row("largest train.micro_batch_tokens", "none", hint)]
    lines += [_row("steps", f"{settings.steps:,}", f"of {settings.batch_size:,} utterances")]
    if corpus_utterances:
        learned_from = math.ceil(settings.corpus_share * corpus_utterances)
        epochs = settings.steps * settings.batch_size / learned_from
        lines += [_row("epochs", f"{epochs:,.2f}", f"of {learned_from:,} utterances")]
    lines += [_row("work of a step", f"{found.flops_per_step / 1e12:,.2f}", "TFLOP")]
    lines += [_row("training", f"{found.hours:,.2f}", "hours")]
    return "\n".join(lines)


def _row(name: str, value: str, remark: str = "") -> str:
    return f"{name:<40}{value:>14} {remark}".rstrip()


def _gib(count: float) -> str:
    return f"{count / GIB:,.2f}"
