"""The encoder at the audio's length (`variable`) against the encoder on its whole window (`padded`).

    python -m benchmarks.encodings [--evaluations VARIABLE.json PADDED.json]

Run in a workspace with a corpus and backbones: each clip of the test split alone, up to one window. `difference` is
the norm of the difference over the norm of the padded frames, `cosine` the mean over frames; `last_second` is the
same on the clip's last second, where the silence behind it is nearest. Whisper's own decoder then reads, greedily:
the whole window as Whisper does (`padded_window`), the padded encoding cut to the clip as the adapter gets it
(`padded_cut`), and the variable one (`variable`). Downstream figures are those of two evaluations, of adapters
trained with `train.encoding: variable` and `padded`. The last line is JSON; what it said is in benchmarks/LOG.md.

Axes: T mel frames, S encoder frames, E encoder width.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutput

from blsp.backbones import load_recogniser, pins
from blsp.data.text import normalizer_of_all
from blsp.evaluation.metrics import word_error_rate
from blsp.evaluation.resampling import bootstrap, resampling_of
from blsp.evaluation.tasks import test_items
from blsp.model.encoder import encode
from blsp.model.processing import BlspProcessor
from blsp.params import load_params

DURATION_BINS = 4


@torch.inference_mode()
def both_encodings(encoder: Any, variable: Any, padded: Any, clip: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The clip's frames (S, E) at its length, and all frames of its window (W, E)."""
    at_length = variable.features([clip])
    features, mask = at_length["input_features"], at_length["input_features_mask"]
    frames = encode(encoder, features, mask)[0, : int(mask[:, ::2].sum())]
    return frames, encoder(padded.features([clip])["input_features"]).last_hidden_state[0]


@torch.inference_mode()
def read(model: Any, frames: torch.Tensor) -> list[int]:
    """The tokens that Whisper's decoder writes, greedily, from frames (S, E)."""
    return model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=frames[None]), num_beams=1)[0].tolist()


def difference(variable: torch.Tensor, padded: torch.Tensor) -> dict[str, float]:
    """Of the frames of one clip, both (S, E)."""
    return {
        "difference": float((variable - padded).norm() / padded.norm()),
        "cosine": float(cosine_similarity(variable, padded, dim=-1).mean()),
    }


def by_duration(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The means over clips of similar length, shortest first."""
    rows = sorted(rows, key=lambda row: row["audio_s"])
    parts = [part for part in np.array_split(np.arange(len(rows)), DURATION_BINS) if len(part)]
    return [{key: float(np.mean([rows[at][key] for at in part])) for key in rows[0]} for part in parts]


def downstream(variable: Path, padded: Path) -> dict[str, dict[str, float]]:
    """The speech figures and the behaviour gap of two evaluations, side by side."""
    figures: dict[str, dict[str, float]] = defaultdict(dict)
    for name, path in (("variable", variable), ("padded", padded)):
        report = json.loads(path.read_text(encoding="utf-8"))
        for task, metrics in report["systems"]["speech"].items():
            for metric, figure in metrics.items():
                for part in ("value", "low", "high"):
                    figures[f"{task}_{metric}"][f"{name}_{part}"] = figure[part]
        for metric, figure in report["alignment"].items():
            if "value" in figure:  # else a behaviour's own figures
                figures[metric][name] = figure["value"]
    return dict(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=400, help="at most, of the test split")
    parser.add_argument("--evaluations", type=Path, nargs=2, metavar=("VARIABLE", "PADDED"), help="evaluation.json")
    options = parser.parse_args()
    params, parts = load_params(), pins()
    model, extractor, tokenizer = load_recogniser()
    at_length, whole_window = (
        BlspProcessor.from_backbones(parts, params.train.downsampling, encoding) for encoding in ("variable", "padded")
    )
    rate, window = extractor.sampling_rate, extractor.n_samples
    items = [item for item in test_items() if len(item.samples) <= window]
    items = items[:: max(len(items) // options.utterances, 1)][: options.utterances]
    frames_a_s = model.config.max_source_positions * rate // window
    rows, texts = [], defaultdict(list)
    for item in tqdm(items, unit="clip", mininterval=2):
        variable, whole = both_encodings(model.get_encoder(), at_length, whole_window, item.samples)
        cut = whole[: len(variable)]
        last = {f"last_second_{k}": v for k, v in difference(variable[-frames_a_s:], cut[-frames_a_s:]).items()}
        rows.append({"audio_s": len(item.samples) / rate, **difference(variable, cut), **last})
        for name, frames in (("padded_window", whole), ("padded_cut", cut), ("variable", variable)):
            texts[name].append(tokenizer.decode(read(model, frames), skip_special_tokens=True).strip())
    settings = params.evaluate
    normalizer = normalizer_of_all((item.language for item in items), params.corpus.normalizer)
    resampling = resampling_of(settings)
    metric = word_error_rate(normalizer)
    wer = {
        name: bootstrap(
            np.array([metric.count(text, item.transcript) for text, item in zip(written, items, strict=True)]),
            metric.compute,
            resampling,
            metric.signature,
        )
        for name, written in texts.items()
    }
    result = {
        "utterances": len(items),
        "window_s": window / rate,
        "mean": {key: float(np.mean([row[key] for row in rows])) for key in rows[0]},
        "by_duration": by_duration(rows),
        "wer": {name: {key: figure[key] for key in ("value", "low", "high")} for name, figure in wer.items()},
        "wer_signature": wer["variable"]["signature"],
    }
    if options.evaluations:
        result["downstream"] = downstream(*options.evaluations)
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
