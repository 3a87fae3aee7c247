"""The `train` stage: the adapter, between the pinned backbones, on what the LLM wrote."""

import csv
import io
import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from blsp import tracking
from blsp.backbones import pins
from blsp.errors import BlspError
from blsp.files import replace_dir, scratch_folder, write_json, write_text
from blsp.params import Params, Train
from blsp.training.places import PIPELINE, Places

ADAPTER_DIR = PIPELINE.adapter
ALIGNMENT_ALONE = ("objective", "temperature", "teacher", "steps", "lr", "warmup_steps", "weight_decay", "clip_norm")


def run(params: Params, places: Places = PIPELINE) -> None:
    """Nothing; afterwards `places` hold the trained adapter, its figures and its curve.

    The log grows line by line while training runs; the adapter takes its name at the very end. A run that was
    killed goes on from its last checkpoint.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import set_seed

    from blsp.data.batches import evaluation_batches, training_sizes
    from blsp.data.index import load_index
    from blsp.model import BlspForConditionalGeneration, BlspProcessor
    from blsp.training.checkpoint import Checkpoints
    from blsp.training.examples import Collator
    from blsp.training.loop import peak_memory_gib, train_adapter
    from blsp.training.plan import Plan
    from blsp.training.prefixes import NONE, prompt_prefixes, takes_prefixes
    from blsp.training.switches import set_switches
    from blsp.training.warm_start import warm_start

    settings = params.train
    is_main = PartialState(cpu=not torch.accelerator.is_available()).is_main_process
    if is_main and places.variant:
        print(_summary(places, settings), flush=True)
    set_seed(settings.seed)
    processor = BlspProcessor.from_backbones(pins(), settings.downsampling, settings.encoding)
    model = BlspForConditionalGeneration.from_backbones(new_config(params, processor.audio_token_id))
    if processor.feature_extractor.sampling_rate != params.corpus.sampling_rate_hz:
        raise BlspError(
            f"params.yaml: corpus.sampling_rate_hz is {params.corpus.sampling_rate_hz}, but the speech model hears "
            f"{processor.feature_extractor.sampling_rate} Hz; set it to that and run `blsp corpus` again"
        )
    set_switches(model, settings)
    behaviours = [name for name, share in settings.shares.items() if share > 0]
    whole = load_index("train", behaviours)
    index = whole.part(settings.corpus_share)
    if settings.objective == "kd" and settings.teacher == "stored":
        _check_stored(index.kept_temperatures(), settings.temperature)
    # Compiled layers would be compiled one by one for it, each with its own place in what was read.
    reads_ahead = not settings.compile and takes_prefixes(model.language_model)
    prefixes = prompt_prefixes(processor, index.different_prompts()) if reads_ahead else NONE
    sizes = training_sizes(index, model, processor, prefixes)
    cache = _frame_cache(settings, index, sizes, model, processor)
    if cache:
        sizes = replace(sizes, frame_cost=0.0)  # known frames cost nothing
    plan = Plan(sizes, settings.shares, settings.batch_size, settings.seed)
    dev = {name: list(evaluation_batches("dev", name, params.evaluate.batch_size)) for name in behaviours}
    # How the work is done, not what comes of it: a run may go on with others of these.
    what = settings.model_dump(exclude={"workers", "shard_llm"})
    key = {"train": what, "backbones": pins(), "data": whole.digest(), "variant": places.variant, "best": "dev_share"}
    checkpoints = Checkpoints(key)
    # What the warm start does not look at may change between its end and a run that goes on.
    warm = Checkpoints({**key, "train": {k: v for k, v in what.items() if k not in ALIGNMENT_ALONE}, "best": "last"})
    collator = Collator(processor, cache, prefixes)

    def example(choice: Any) -> Any:
        return index.example(choice.row, choice.behaviour)

    Path(places.log).parent.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, float]] = []
    with tracking.open_tracker(params, places) if is_main else nullcontext(tracking.Tracker()) as tracker:
        warm_start_s = 0.0
        if settings.warm_start:
            transcripts = index.table["transcript"].unique().to_pylist()
            warm_start_s = warm_start(
                model, collator, plan, example, transcripts, settings.warm_start_steps, warm, settings.checkpoint_every
            )
        with open(places.log if is_main else os.devnull, "w", encoding="utf-8") as log_file:

            def log(step: int, figures: dict[str, float]) -> None:
                records.append({"step": step, **figures})
                log_file.write(json.dumps(records[-1]) + "\n")
                log_file.flush()
                tracker.log(step, figures)

            train_adapter(
                model,
                collator,
                plan,
                example,
                dev,
                settings,
                checkpoints,
                log,
            )
        PartialState().destroy_process_group()  # a process that ends with it open is told off by torch
        if not is_main:
            return
        with replace_dir(places.adapter) as folder:
            model.save_pretrained(folder)
        write_text(places.curve, _as_csv(records))
        report = {
            "steps": settings.steps,
            "loss": records[-1]["loss"],
            **({"warm_start_s": warm_start_s} if settings.warm_start else {}),
            "adapter_parameters": sum(p.numel() for p in model.multi_modal_projector.parameters()),
            "train_s": records[-1]["elapsed_s"],  # of all legs, where the run was stopped and went on
            "peak_memory_gib": peak_memory_gib(),
        }
        measured = [record for record in records if "dev_kl" in record]
        if measured:
            best = max(measured, key=lambda record: record["dev_share"])
            report |= {"best_step": best["step"], **{k: v for k, v in best.items() if k.startswith("dev_")}}
        write_json(places.report, report)
    checkpoints.clear()
    warm.clear()
    print(f"adapter of {report['adapter_parameters']:,} parameters trained in {report['train_s']:.0f} s")
    if measured:
        print(
            f"dev: KL {report['dev_kl']:.3f} nats a token, top-1 agreement {report['dev_top1']:.3f}, "
            f"{report['dev_share']:.3f} of the way from another's speech to text"
        )


def _summary(places: Places, settings: Train) -> str:
    """Which variant this is, and what the comparisons are about."""
    shares = ", ".join(f"{name}: {share:g}" for name, share in settings.shares.items())
    return (
        f"{places.variant} from seed {places.seed}: objective {settings.objective}, shares {{{shares}}}, "
        f"temperature {settings.temperature:g}, downsampling {settings.downsampling}, "
        f"corpus_share {settings.corpus_share:g}"
    )


def _check_stored(found: set[float | None], temperature: float) -> None:
    if found != {temperature}:
        shown = ", ".join(sorted("none" if t is None else f"{t:g}" for t in found))
        raise BlspError(
            f"train.teacher is stored, which takes its distribution at train.temperature {temperature:g} with every "
            f"row; data/continuations has it at: {shown}; set continuations.top_logprobs to 20 and run "
            "`blsp continuations` again, or set train.teacher to live"
        )


def _frame_cache(settings: Train, index: Any, sizes: Any, model: Any, processor: Any) -> Any:
    """The frames of all utterances, where the settings leave them room and the corpus is seen more than once."""
    from blsp.training.frames import FrameCache

    width, limit_bytes = model.config.audio_config.d_model, settings.encoder_cache_gib * 2**30
    steps = settings.steps + (settings.warm_start_steps if settings.warm_start else 0)
    seen_again = steps * settings.batch_size > len(index)
    if not seen_again or FrameCache.bytes_needed(sizes.frames, width) > limit_bytes:
        return None
    key = [pins()["speech"]["sha256"], settings.encoding, settings.precision, index.audio_digest()]
    cache = FrameCache(scratch_folder() / "frames", key, index.table["id"].to_pylist(), sizes.frames, width)
    cache.make_room(limit_bytes)
    cache.fill(model, processor, index.load_samples)
    return cache


def new_config(params: Params, audio_token_id: int) -> Any:
    """The configuration of a fresh adapter between the pinned backbones."""
    from blsp.model import BlspConfig

    return BlspConfig(
        audio_token_id=audio_token_id,
        adapter=params.train.adapter,
        downsampling=params.train.downsampling,
        bottleneck=params.train.bottleneck,
        encoding=params.train.encoding,
        precision=params.train.precision,
        backbones=pins(),
    )


def _as_csv(records: list[dict[str, float]]) -> str:
    """The curve as CSV; a step at which dev was not measured has empty cells."""
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
