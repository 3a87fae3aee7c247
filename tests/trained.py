"""The files that the stages leave behind, small and unlike any other test's."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from blsp.files import sha256_of
from blsp.params import Params

ITEMS = 40  # of the test split
PARAMS = Path(__file__).parents[1] / "params.yaml"


class Answering:
    """In the smoke test's place: finds this fault, or none."""

    def __init__(self, fault: str | None = None) -> None:
        self._fault = fault

    def fault(self, model_uri: str) -> str | None:
        return self._fault


class Trained:
    """A finished training in the working directory; each method writes one stage's files anew."""

    def __init__(self, params: Params) -> None:
        self.id = uuid.uuid4().hex
        # Its own name in the registry: tests share the store.
        promote = params.promote.model_copy(update={"model_name": f"model-{self.id}"})
        self.params = params.model_copy(update={"promote": promote})

    def digest(self, path: str) -> str:
        """What DVC calls this data's content."""
        return hashlib.md5(f"{self.id} {path}".encode(), usedforsecurity=False).hexdigest() + ".dir"

    def write_data(self) -> None:
        parts = {
            name: {
                "source": "miniature",
                "name": f"models/backbones/{name}",
                "revision": None,
                "sha256": "0" * 64,
                "licence": "Apache-2.0",
            }
            for name in ("speech", "llm")
        }
        _write_json("models/backbones/backbones.json", parts)
        stages = {
            stage: {"cmd": f"blsp {stage}", "outs": [{"path": path, "hash": "md5", "md5": self.digest(path)}]}
            for stage, path in (("corpus", "data/corpus"), ("continuations", "data/continuations"))
        }
        _write_json("dvc.lock", {"schema": "2.0", "stages": stages})  # JSON is YAML too
        _write_json("reports/validation.json", {"success": True})
        _write("reports/data_docs/index.html", "<title>Data Docs</title>")

    def rows(self, steps: int, slope: float = 1.0) -> list[dict[str, Any]]:
        """The training log: `loss` at every step, `dev_kl` at every tenth."""
        return [
            {"step": step, "loss": slope / (step + 1), **({"dev_kl": 0.1 * step} if step % 10 == 0 else {})}
            for step in range(steps)
        ]

    def write_training(self, steps: int, weights: str = "", slope: float = 1.0) -> None:
        _write_json("models/adapter/config.json", {"model_type": "blsp"})
        _write("models/adapter/model.safetensors", self.id + weights)
        _write_json("reports/train.json", {"loss": slope / steps, "dev": {"kl": 0.25}})
        _write("reports/train_log.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows(steps, slope)))

    def write_evaluation(self, wrong: Mapping[str, int] | None = None, **speech: float) -> None:
        """Figures of the present adapter; all gates hold unless `wer`, `bleu`, `slu`, `qa` say otherwise.

        Of its answers so many are `wrong`, by task.
        """
        report = {
            "adapter_sha256": sha256_of("models/adapter"),
            "systems": {
                "cascade": _system(wer=0.07, bleu=82.0, slu=0.95, qa=0.95),
                "speech": _system(**({"wer": 0.08, "bleu": 80.0, "slu": 0.97, "qa": 0.9} | speech)),
            },
            "alignment": {"kl": _figure(0.1), "top1_agreement": _figure(0.95)},
            "comparisons": [
                {"system": "speech", "than": "cascade", "task": "asr", "metric": "wer", "p": 0.4, **_figure(0.01)}
            ],
            "test": {"utterances": ITEMS, "audio_s": 90.0},
            "tasks": [
                {"name": name, "metric": metric, "higher_is_better": metric != "wer", "heard": True}
                for name, metric in (("asr", "wer"), ("st", "bleu"), ("slu", "accuracy"), ("qa", "accuracy"))
            ],
            "instructions": {"asr": ["Repeat the following text."]},
            "backbones": {
                part: {**pin, "origin": f"miniature {part}"}
                for part, pin in json.loads(Path("models/backbones/backbones.json").read_text()).items()
            },
        }
        _write_json("reports/evaluation.json", report)
        _write("reports/evaluation.md", "| system | wer |")
        _write("reports/figures/curve.png", "png")
        self.write_answers(wrong or {})

    def write_answers(self, wrong: Mapping[str, int], items: int = ITEMS, first: int = 0) -> None:
        """What text and speech answered to two tasks, of which speech got so many `wrong`."""
        rows = [
            {
                "system": system,
                "seed": 1,
                "condition": "clean",
                "task": task,
                "instruction": instruction,
                "id": f"test-{number:03d}",
                "language": "en",
                "speaker": "voice",
                "audio_s": 1.0 + number / 100,
                "transcript": f"switch lamp {number} on",
                "reference": right,
                "answer": "wrong" if system == "speech" and number - first < wrong.get(task, 0) else right,
            }
            for number in range(first, first + items)
            for task, instruction, right in (
                ("asr", "Repeat the following text.", f"switch lamp {number} on"),
                ("slu", "Name the intent of the following text.", "device_on"),
            )
            for system in ("text", "speech")
        ]
        table = pd.DataFrame(rows).assign(counts=None, quality=1.0)
        table.to_parquet("reports/answers.parquet", index=False)


def _system(wer: float, bleu: float, slu: float, qa: float) -> dict[str, Any]:
    return {
        "asr": {"wer": _figure(wer)},
        "st": {"bleu": _figure(bleu)},
        "slu": {"accuracy": _figure(slu)},
        "qa": {"accuracy": _figure(qa)},
    }


def _figure(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 400, "signature": "bootstrap"}


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _write_json(path: str, value: Any) -> None:
    _write(path, json.dumps(value))
