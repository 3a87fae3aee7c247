"""`make laptop`: real Whisper, real chat LLM and human voices on two cores, in a folder of its own.

experiments/laptop has the pipeline's own stages in its dvc.yaml and works in that folder alone: params.yaml there is
the project's with profiles/laptop.yaml in it; data/, models/ and reports/ lie beside it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from blsp.errors import BlspError
from blsp.files import read_json, replace_dir, sha256_of, write_json, write_text
from blsp.params import PARAMS_FILE, load_params, read_params, with_overrides
from flows import experiments
from flows.git import asked

FOLDER = Path("experiments/laptop")
SOURCE = FOLDER / "data/source"
CORPORA = ("speechocean762", "coffee")
SHIPPED = FOLDER / "adapter"  # in git: the adapter of the committed reports
SHIPPED_MB = 12
CHECKED_QUESTIONS = 40
CARD = """\
---
license: apache-2.0
language: en
tags: [speech, blsp]
---
# An adapter that lets SmolLM2-135M-Instruct hear through Whisper tiny.en

Trained by blsp (`make laptop`, docs/laptop.md) on human recordings of speechocean762 and on sentences spoken by
espeak-ng; judged on speakers, voices and sentences that it was not trained on. English alone, one short utterance at a
time. It mishears accents, children and names often, hears no token that its training transcripts lack, and the LLM is a
small one: a demonstration, not a product.

Between these, pinned, and no others:

{pins}

{table}

`text` reads the transcript, `cascade` what Whisper writes, `speech` hears through this adapter, `untrained` through a
fresh one. Values are followed by 95 % bootstrap intervals. In bfloat16, made from the float32 adapter of SHA-256
{adapter_sha256}, on which the table was measured; provenance.json has the rest.
"""


def prepare(corpus: str | None) -> None:
    """Link the corpora and write params.yaml and dvc.yaml of the experiment, where they are not so already.

    Raises BlspError where there is no corpus, or not the ones that are meant.
    """
    if corpus is not None:
        SOURCE.parent.mkdir(parents=True, exist_ok=True)
        if SOURCE.is_symlink():
            SOURCE.unlink()
        SOURCE.symlink_to(Path(corpus).resolve(), target_is_directory=True)
    for name in CORPORA:
        if not (SOURCE / name).is_dir():
            raise BlspError(
                f"{SOURCE / name}: no such folder; run `make laptop CORPUS=folder` with a folder that holds "
                f"{' and '.join(CORPORA)}: see docs/laptop.md"
            )
    for path, text in ((FOLDER / PARAMS_FILE, params_text()), (FOLDER / "dvc.yaml", dvc_text())):
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def params_text() -> str:
    """The project's params.yaml with the profile's values."""
    return with_overrides(read_params(), "laptop")


def dvc_text() -> str:
    """The pipeline's own dvc.yaml, its code two folders up."""
    yaml = YAML(typ="safe", pure=True)
    graph = yaml.load(Path("dvc.yaml").read_text(encoding="utf-8"))
    lines = ["# The stages of the pipeline's dvc.yaml, written by `make laptop` (flows/laptop.py).", "stages:"]
    for name, stage in graph["stages"].items():
        lines.append(f"  {name}:")
        for key, value in stage.items():
            if key == "deps":
                value = [f"../../{path}" if path.startswith("blsp") else path for path in value]
                value += ["questions.jsonl", "sentences.jsonl", "coffee.jsonl"] if name == "corpus" else []
            lines.append(f"    {key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    return json.dumps(value)  # JSON is YAML too


def ship() -> None:
    """Write the trained adapter into git's folder, in bfloat16, with what it was made of and what it reached.

    Raises BlspError where it is not the one that was evaluated, or larger than SHIPPED_MB.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from blsp.model.loading import ADAPTER_FILE

    trained, evaluation = FOLDER / "models/adapter", read_json(FOLDER / "reports/evaluation.json")
    if sha256_of(trained) != evaluation["adapter_sha256"]:
        raise BlspError(f"{trained} is not the adapter of {FOLDER}/reports/evaluation.json; run `make laptop` first")
    tensors = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(trained / ADAPTER_FILE).items()
    }
    if (size_mb := sum(tensor.nbytes for tensor in tensors.values()) / 1e6) > SHIPPED_MB:
        raise BlspError(f"the adapter is of {size_mb:.1f} MB, more than {SHIPPED_MB}; lower train.bottleneck")
    speech = {
        f"{task}.{metric}": figure["value"]
        for task, figures in evaluation["systems"]["speech"].items()
        for metric, figure in figures.items()
    }
    with replace_dir(SHIPPED) as folder:
        shutil.copy(trained / "config.json", folder / "config.json")
        write_text(folder / "README.md", _card(evaluation))
        save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
        write_json(
            folder / "provenance.json",
            {
                "command": "make laptop CORPUS=... && python -m flows.laptop --ship",
                "commit": asked("rev-parse", "HEAD"),
                "trained_adapter_sha256": evaluation["adapter_sha256"],
                "dvc_lock_sha256": sha256_of(FOLDER / "dvc.lock"),
                "licences": {part: pin["licence"] for part, pin in evaluation["backbones"].items()},
                "speech": speech,
            },
        )
    print(f"{SHIPPED}: {size_mb:.1f} MB")


def _card(evaluation: dict[str, Any]) -> str:
    """The shipped adapter's model card."""
    from blsp.evaluation import report

    pins = "\n".join(
        f"- {part}: {pin['name']}, SHA-256 {pin['sha256']}, {pin['licence']}"
        for part, pin in evaluation["backbones"].items()
    )
    return CARD.format(pins=pins, table=report.table(evaluation), adapter_sha256=evaluation["adapter_sha256"])


def check() -> None:
    """Ask the shipped adapter, on the real weights, spoken questions; they are fetched where they are not there.

    Raises BlspError where it answers fewer than it did when it was shipped, beyond chance.
    """
    if not (SHIPPED / "config.json").is_file():
        raise BlspError(f"{SHIPPED}: no adapter is there yet; run `make laptop`, then `python -m flows.laptop --ship`")
    subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--quiet", f"{FOLDER}/dvc.yaml:backbones"], check=True
    )  # also brings them from DVC's cache
    shipped, sentences = SHIPPED.resolve(), FOLDER.resolve() / "questions.jsonl"
    before = Path.cwd()
    os.chdir(FOLDER)
    try:
        from blsp.data.audio import resample
        from blsp.data.records import Utterance, Waveform
        from blsp.data.sources.spoken import read
        from blsp.evaluation.metrics import contains
        from blsp.model import BlspForConditionalGeneration, BlspProcessor
        from blsp.model.chat import respond

        params = load_params(PARAMS_FILE)
        task = params.evaluate.tasks["qa"]
        model = BlspForConditionalGeneration.from_pretrained(shipped).eval()
        processor = BlspProcessor.from_pretrained(shipped)
        rows = [row for row in read(sentences) if isinstance(row, Utterance) and row.split == "test"]
        clips = []
        for row in rows[:CHECKED_QUESTIONS]:
            assert callable(row.audio)
            spoken: Waveform = row.audio()
            rate_hz = processor.feature_extractor.sampling_rate
            clips.append(resample(spoken.samples, spoken.sampling_rate_hz, rate_hz))
        prompt = task.prompt(task.instructions[0])
        answers = respond(model, processor, prompt, clips, params.evaluate.max_new_tokens)
    finally:
        os.chdir(before)
    count = contains().count
    assert count is not None
    right = [bool(count(answer, row.answer or "")[0]) for row, answer in zip(rows, answers, strict=False)]
    for row, answer, is_right in list(zip(rows, answers, right, strict=False))[:8]:
        print(f"{'right' if is_right else 'wrong'}  {row.text}  ->  {answer}")
    found, expected = sum(right) / len(right), read_json(SHIPPED / "provenance.json")["speech"]["qa.contains"]
    print(f"{sum(right)} of {len(right)} spoken questions answered right; when it was shipped: {expected:.0%} of all")
    allowed = 2.5 * (expected * (1 - expected) / len(right)) ** 0.5
    if found < expected - allowed:
        raise BlspError(
            f"the shipped adapter answers {found:.0%} right, where {expected:.0%} were: it is not what it was"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all stages are up to date afterwards, 1 where some failed, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.laptop",
        description="Run the laptop experiment in experiments/laptop, as far as it is stale, and print its table.",
        epilog="Interrupting is safe: the next run goes on with what is left, a training from its last checkpoint.",
    )
    parser.add_argument("--corpus", metavar="FOLDER", help=f"folder that holds {' and '.join(CORPORA)}")
    parser.add_argument("--ship", action="store_true", help=f"write the trained adapter into {SHIPPED}, for git")
    parser.add_argument("--check", action="store_true", help="ask the shipped adapter questions, on the real weights")
    options = parser.parse_args(arguments)
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", "blsp-laptop")
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path('mlflow.db').resolve()}")
    try:
        if options.ship or options.check:
            (ship if options.ship else check)()
            return 0
        prepare(options.corpus)
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    if not (FOLDER / "reports/evaluation.json").is_file():
        checked = subprocess.run([sys.executable, "-m", "blsp", "check"], cwd=FOLDER, check=False)
        if checked.returncode:
            return 1
    status = experiments.main(["laptop"])
    if status == 0:
        from blsp.evaluation import report

        print("\n" + report.table(read_json(FOLDER / "reports/evaluation.json")))
    return status


if __name__ == "__main__":
    sys.exit(main())
