"""`blsp STAGE`: one thin command a stage of the pipeline."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from blsp.errors import BlspError
from blsp.params import PARAMS_FILE, load_params

STAGES = {
    "backbones": ("blsp.backbones", "resolve the two frozen models (or train the miniature's)"),
    "corpus": ("blsp.data.corpus", "read, filter, normalise, split and pack the speech"),
    "continuations": ("blsp.continuation.writer", "let the LLM write from each transcript"),
    "validate": ("blsp.contracts.validate", "judge corpus and continuations with Great Expectations"),
    "train": ("blsp.training.train", "train the adapter"),
    "evaluate": ("blsp.evaluation.evaluate", "compare text, cascade, speech and untrained on every task"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 after one message about something the user can mend."""
    parser = argparse.ArgumentParser(
        prog="blsp",
        description="Runs one stage of the pipeline in this folder. `dvc repro` runs those that are stale, in order.",
    )
    parser.add_argument("--params", default=PARAMS_FILE, help="params file (default: %(default)s)")
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, (_, purpose) in STAGES.items():
        commands.add_parser(name, help=purpose, description=purpose)
    commands.add_parser("track", help="replay the latest training and evaluation into MLflow")
    exporting = commands.add_parser(
        "export",
        help="write encoder, adapter and LLM into one folder, for servers",
        description="Writes encoder, adapter and LLM into FOLDER, with tokenizer, feature extractor and chat template: "
        "one checkpoint that needs no other. After `import blsp.model`, "
        "AutoModelForMultimodalLM.from_pretrained(FOLDER) and AutoProcessor.from_pretrained(FOLDER) load it.",
        epilog="example: blsp export models/served --dtype bfloat16",
    )
    exporting.add_argument("folder", metavar="FOLDER", help="where to; must not be there yet")
    exporting.add_argument("--adapter", default="models/adapter", help="trained adapter (default: %(default)s)")
    exporting.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of all weights (default: the LLM's own)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        if options.stage == "export":
            from blsp.model.export import export

            export(options.adapter, options.folder, options.dtype)
            print(f"{options.folder}: the whole model, ready to be served or moved")
            return 0
        params = load_params(options.params)
        if options.stage == "track":
            from blsp import tracking

            run_id = tracking.sync(params)
            print(f"MLflow run {run_id}" if run_id else "nothing recorded: BLSP_TRACKING=off")
        else:
            # Weights load in seconds; the stages show progress of their own.
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
            importlib.import_module(STAGES[options.stage][0]).run(params)
    except BlspError as error:
        print(f"blsp {options.stage}: {error}", file=sys.stderr)
        return 1
    return 0
