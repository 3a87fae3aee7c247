"""The `train` stage: the adapter, between the pinned backbones, on what the LLM wrote."""

import csv
import io
import json
import resource
import time
from pathlib import Path
from typing import Any

from blsp import tracking
from blsp.backbones import pins
from blsp.data.batches import evaluation_batches, training_batches
from blsp.errors import BlspError
from blsp.files import replace_dir, write_json, write_text
from blsp.params import Params

ADAPTER_DIR = "models/adapter"
REPORT = "reports/train.json"
LOG = "reports/train_log.jsonl"
CURVE = "reports/train_curve.csv"
ENCODER_CACHE_BYTES = 1 << 30


def run(params: Params) -> None:
    """Nothing; afterwards models/adapter holds the trained adapter and reports/ its figures and curve.

    The log grows line by line while training runs; the adapter takes its name at the very end.
    """
    from accelerate.utils import set_seed

    from blsp.model import BlspForConditionalGeneration, BlspProcessor
    from blsp.training.examples import Collator
    from blsp.training.loop import train_adapter

    settings = params.train
    set_seed(settings.seed)
    processor = BlspProcessor.from_backbones(
        pins()["speech"]["name"], pins()["llm"]["name"], settings.downsampling, settings.encoding
    )
    model = BlspForConditionalGeneration.from_backbones(new_config(params, processor.audio_token_id))
    if processor.feature_extractor.sampling_rate != params.corpus.sampling_rate_hz:
        raise BlspError(
            f"params.yaml: corpus.sampling_rate_hz is {params.corpus.sampling_rate_hz}, but the speech model hears "
            f"{processor.feature_extractor.sampling_rate} Hz; set it to that and run `blsp corpus` again"
        )
    collator = Collator(model, processor, ENCODER_CACHE_BYTES)
    dev = list(evaluation_batches("dev", next(iter(settings.shares)), params.evaluate.batch_size))
    batches = training_batches(settings.shares, settings.batch_size, settings.seed)
    Path(LOG).parent.mkdir(exist_ok=True)
    started = time.perf_counter()
    records: list[dict[str, float]] = []
    with tracking.open_tracker(params) as tracker:
        with open(LOG, "w", encoding="utf-8") as log_file:

            def log(step: int, figures: dict[str, float]) -> None:
                records.append({"step": step, **figures})
                log_file.write(json.dumps(records[-1]) + "\n")
                log_file.flush()
                tracker.log(step, figures)

            train_adapter(model, collator, batches, dev, settings, log)
        with replace_dir(ADAPTER_DIR) as folder:
            model.save_pretrained(folder)
        write_text(CURVE, _as_csv(records))
        last = records[-1]
        report: dict[str, float] = {
            "steps": settings.steps,
            "loss": last["loss"],
            "adapter_parameters": sum(p.numel() for p in model.multi_modal_projector.parameters()),
            "train_s": time.perf_counter() - started,
            "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        report |= {name: last[name] for name in ("dev_kl", "dev_top1") if name in last}
        write_json(REPORT, report)
    print(f"adapter of {report['adapter_parameters']:,} parameters trained in {report['train_s']:.0f} s")
    if "dev_kl" in report:
        print(f"dev: KL {report['dev_kl']:.3f} nats a token, top-1 agreement {report['dev_top1']:.3f}")


def new_config(params: Params, audio_token_id: int) -> Any:
    """The configuration of a fresh adapter between the pinned backbones."""
    from transformers import AutoConfig

    from blsp.model import BlspConfig

    parts = pins()
    return BlspConfig(
        audio_config=AutoConfig.from_pretrained(parts["speech"]["name"]),
        text_config=AutoConfig.from_pretrained(parts["llm"]["name"]),
        audio_token_id=audio_token_id,
        adapter=params.train.adapter,
        downsampling=params.train.downsampling,
        bottleneck=params.train.bottleneck,
        encoding=params.train.encoding,
        backbones=parts,
    )


def _as_csv(records: list[dict[str, float]]) -> str:
    """The curve as CSV; a step at which dev was not measured has empty cells."""
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
