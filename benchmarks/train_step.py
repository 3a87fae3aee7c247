"""The published recipe's training step against ours: same models, same utterances, same process, in turn.

    python -m benchmarks.train_step [--size small] [--rounds 3] [--utterances 24] [--only NAME ...]
    python -m benchmarks.train_step --size large --device cuda --utterances 192 --batch-size 16

Published: random batches, every clip padded to 30 s, the parts of the prompt padded each for itself, logits over the
whole vocabulary at every position. Ours: batches of similar lengths within a budget, audio at its length, logits
where there is a target. Lengths are drawn like LibriSpeech's (1.3 to 35 s, mean 12 s), texts to match; weights are
random. A step is forward and backward; the optimiser's share is the same for both and left out. The last line is
JSON. What it said, and when, is in benchmarks/LOG.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch

from benchmarks.recipes import PREFIXES, encoded, our_batch, our_micro_batches, our_step, published_step, random_batches
from benchmarks.work import (
    Work,
    encoder_parameters,
    llm_parameters,
    our_work,
    published_work,
    teacher_work,
)
from benchmarks.workload import SHAPES, Utterance, librispeech_like, new_model, utterance
from blsp.model import BlspConfig, BlspForConditionalGeneration
from blsp.training.objective import AlignmentObjective

POSITIONS_AN_UTTERANCE = 200  # ours may hold as many LLM positions at once as the published batch of that size
AUDIO_LENGTHS_S = (5, 10, 15, 20, 25, 30)
MATRIX_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16_384)}

Figures = dict[str, float]


def micro_batches(config: BlspConfig, utterances: list[Utterance], batch_size: int) -> list[list[Utterance]]:
    """Ours, within the memory of a published batch."""
    size = encoder_parameters(config), llm_parameters(config)
    return our_micro_batches(size, config.downsampling, utterances, batch_size * POSITIONS_AN_UTTERANCE)


def arithmetic(config: BlspConfig, utterances: list[Utterance], batch_size: int) -> Figures:
    """What the counted work says of the ratios that are measured; nothing is run.

    `published_over_ours` is what the ratio would be if both recipes computed at the same rate.
    """
    micros = micro_batches(config, utterances, batch_size)
    published = _sum(published_work(config, batch) for batch in random_batches(utterances, batch_size))
    ours = _sum(our_work(config, micro, padded=True) for micro in micros)
    needed = _sum(our_work(config, micro, padded=False) for micro in micros)
    teacher = _sum(teacher_work(config, micro) for micro in micros)
    parts = {
        f"{who}_{part}_share": flops / work.total
        for who, work in (("published", published), ("ours", ours))
        for part, flops in vars(work).items()
    }
    return {
        "published_over_ours": published.total / ours.total,
        "published_over_ours_from_cache": published.total / (ours.total - ours.encoder),
        "published_over_ours_without_padding": published.total / needed.total,
        "kd_live_over_ce": 1 + teacher.total / ours.total,
        "kd_live_over_ce_from_cache": 1 + teacher.total / (ours.total - ours.encoder),
        "ours_gflop_an_audio_s": needed.total / sum(u.seconds for u in utterances) / 1e9,
        **parts,
    }


def against_published(
    model: BlspForConditionalGeneration, utterances: list[Utterance], batch_size: int, rounds: int
) -> Figures:
    """Audio seconds a second of both, and their ratio: the median over rounds in which they take turns.

    `from_cache` is ours where the encoder's frames are kept from an epoch before (read from memory here): no part of
    the ratio. The shares are of the peak of a matrix product: of the work that the step needs, without padding.
    """
    random, ours = random_batches(utterances, batch_size), micro_batches(model.config, utterances, batch_size)
    objective = AlignmentObjective(model, "ce", prefixes=PREFIXES)
    kept = [[clip.float().cpu() for clip in encoded(model, micro)] for micro in ours]
    audio_s = sum(u.seconds for u in utterances)
    work = _sum(our_work(model.config, micro, padded=False) for micro in ours)
    steps: dict[str, Callable[[], object]] = {
        "published": lambda: [published_step(model, batch) for batch in random],
        "ours": lambda: [our_step(objective, our_batch(model, micro)) for micro in ours],
        "from_cache": lambda: [
            our_step(objective, our_batch(model, micro, clips)) for micro, clips in zip(ours, kept, strict=True)
        ],
    }
    medians = median_seconds(steps, rounds, model.device)
    peak = matmul_peak(model.language_model.dtype, model.device)
    return {
        "mean_audio_s": audio_s / len(utterances),
        **{f"{name}_audio_s_per_s": audio_s / seconds for name, seconds in medians.items()},
        "ratio": medians["published"] / medians["ours"],
        "from_cache_ratio_not_for_the_bar": medians["published"] / medians["from_cache"],
        "peak_tflop_per_s": peak / 1e12,
        "ours_share_of_peak": work.total / medians["ours"] / peak,
        "from_cache_share_of_peak": (work.total - work.encoder) / medians["from_cache"] / peak,
    }


def teachers(model: BlspForConditionalGeneration, utterances: list[Utterance], rounds: int) -> Figures:
    """The step under kd with a live and with a stored teacher over the step under ce; encoded, or from the cache."""
    clips = [clip.float().cpu() for clip in encoded(model, utterances)]
    objectives = {
        "ce": AlignmentObjective(model, "ce", prefixes=PREFIXES),
        "kd_live": AlignmentObjective(model, "kd", 2.0, "live", prefixes=PREFIXES),
        "kd_stored": AlignmentObjective(model, "kd", 2.0, "stored", prefixes=PREFIXES),
    }
    steps: dict[str, Callable[[], object]] = {}
    for name, objective in objectives.items():
        steps[name] = lambda o=objective: our_step(o, our_batch(model, utterances))  # type: ignore[misc]
        steps[f"{name}_from_cache"] = lambda o=objective: our_step(o, our_batch(model, utterances, clips))  # type: ignore[misc]
    medians = median_seconds(steps, rounds, model.device)
    return {
        f"{name}_over_ce{suffix}": medians[name + suffix] / medians["ce" + suffix]
        for name in ("kd_live", "kd_stored")
        for suffix in ("", "_from_cache")
    }


def linearity(model: BlspForConditionalGeneration, batch_size: int, rounds: int) -> Figures:
    """Seconds of a step by audio length, and how far they lie from a straight line at most, as a share of it."""
    rng, vocabulary = np.random.default_rng(3), model.config.text_config.vocab_size
    batches = {
        f"{s}_s": [utterance(s, rng, vocabulary, response_tokens=40) for _ in range(batch_size)]
        for s in AUDIO_LENGTHS_S
    }
    objective = AlignmentObjective(model, "ce", prefixes=PREFIXES)
    steps: dict[str, Callable[[], object]] = {
        name: lambda b=batch: our_step(objective, our_batch(model, b))  # type: ignore[misc]
        for name, batch in batches.items()
    }
    medians = median_seconds(steps, rounds, model.device)
    times = np.array(list(medians.values()))
    line = np.polyval(np.polyfit(AUDIO_LENGTHS_S, times, 1), AUDIO_LENGTHS_S)
    return {"worst_share_off_the_line": float(np.abs(times / line - 1).max()), **medians}


def median_seconds(steps: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> Figures:
    """The median time of each, taking turns; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            times[name].append(seconds_of(step, device))
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long it takes until its results are there."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """The most FLOP/s that a square matrix product of this type reaches here, over sizes and repetitions."""
    best, repeats = 0.0, 10 if device.type == "cuda" else 1
    for size in MATRIX_SIZES[device.type]:
        a, b, product = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b, product: torch.Tensor = product) -> None:
            for _ in range(repeats):
                torch.mm(a, b, out=product)

        best = max(best, *(2 * size**3 * repeats / seconds_of(multiply, device) for _ in range(6)))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sum(works: Iterable[Work]) -> Work:
    return reduce(add, works)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="small", help="of the models")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one that does not")
    parser.add_argument("--utterances", type=int, default=24, help="utterances a round")
    parser.add_argument("--batch-size", type=int, default=8, help="of the published recipe; ours takes as much memory")
    names = ("arithmetic", "against_published", "teachers", "linearity")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="what to measure")
    options = parser.parse_args()
    shape, rounds, batch_size = SHAPES[options.size](), options.rounds, options.batch_size
    utterances = librispeech_like(options.utterances)
    model: Any = new_model(shape, options.device) if set(options.only) - {"arithmetic"} else None
    measures: dict[str, Callable[[], Figures]] = {
        "arithmetic": lambda: arithmetic(shape.config(), utterances, batch_size),
        "against_published": lambda: against_published(model, utterances, batch_size, rounds),
        "teachers": lambda: teachers(model, librispeech_like(batch_size, seed=2), rounds),
        "linearity": lambda: linearity(model, batch_size // 2, rounds),
    }
    on_gpu = options.device.type == "cuda"
    result: dict[str, object] = {
        "size": options.size,
        "device": torch.cuda.get_device_name(options.device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "utterances": options.utterances,
        "batch_size": batch_size,
        "rounds": rounds,
    }
    for name in options.only:
        result[name] = {key: round(value, 4) for key, value in measures[name]().items()}
        print(f"{name}: {result[name]}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
