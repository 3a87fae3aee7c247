"""`make laptop`: real Whisper, real chat LLM and human voices on two cores, in a folder of its own.

experiments/laptop has the pipeline's own stages in its dvc.yaml and works in that folder alone: params.yaml there is
the project's with profiles/laptop.yaml in it; data/, models/ and reports/ lie beside it.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

from blsp.errors import BlspError
from blsp.files import read_json, write_text
from blsp.params import PARAMS_FILE, read_params, with_overrides
from flows import experiments

FOLDER = Path("experiments/laptop")
SOURCE = FOLDER / "data/source"
CORPORA = ("speechocean762", "coffee")


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
    import json

    return json.dumps(value)  # JSON is YAML too


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all stages are up to date afterwards, 1 where some failed, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.laptop",
        description="Run the laptop experiment in experiments/laptop, as far as it is stale, and print its table.",
        epilog="Interrupting is safe: the next run goes on with what is left, a training from its last checkpoint.",
    )
    parser.add_argument("--corpus", metavar="FOLDER", help=f"folder that holds {' and '.join(CORPORA)}")
    options = parser.parse_args(arguments)
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", "blsp-laptop")
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path('mlflow.db').resolve()}")
    try:
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
