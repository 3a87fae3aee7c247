"""`blsp STAGE`: one thin command a stage of the pipeline."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from blsp.errors import BlspError
from blsp.params import PARAMS_FILE, Params, load_params
from blsp.training.places import PIPELINE, Places, places_of

STAGES = {
    "backbones": ("blsp.backbones", "resolve the two frozen models (or train the miniature's)"),
    "corpus": ("blsp.data.corpus", "read, filter, split and pack the speech"),
    "validate_corpus": ("blsp.contracts.validate_corpus", "judge the corpus with Great Expectations"),
    "continuations": ("blsp.continuation.writer", "let the LLM write from each transcript"),
    "validate": ("blsp.contracts.validate", "judge corpus and continuations with Great Expectations"),
    "train": ("blsp.training.train", "train the adapter"),
    "evaluate": ("blsp.evaluation.evaluate", "compare text, cascade, speech and untrained on every task"),
}

# Of experiments/paper/dvc.yaml, beside `train --variant`.
PAPER = {
    "measure": ("blsp.paper.measure", "ask a trained variant everything: answers, behaviour gap, states by layer"),
    "robustness": ("blsp.paper.robustness", "ask cascade and speech again under noise, tempo, telephone, other voices"),
    "ablations": ("blsp.paper.ablations", "draw what each setting of the ablations does"),
    "paper": ("blsp.paper.compare", "set the variants and the baselines side by side on one page"),
}
VARIANTS = ("train", "track", "measure")  # they are told which

# Those of blsp.estimate.estimate, and this machine: named here so that --help need not import torch.
GPU_NAMES = ("h200", "h100", "a100-80", "a100-40", "l40s", "rtx4090", "cpu")


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
    for name, (_, purpose) in PAPER.items():
        commands.add_parser(name, help=f"for the paper: {purpose}", description=purpose)
    commands.add_parser(
        "check",
        help="say in seconds what would go wrong with a run",
        description="Reads the sources' rows, decodes a few files of each kind, and says what a run would come to: "
        "rows by language and split, licences and references that are missing, tasks without items. The exit status is "
        "1 where a run would fail.",
    )
    commands.add_parser("track", help="replay the latest training and evaluation into MLflow")
    for name in VARIANTS:
        own, needed = commands.choices[name], name == "measure"
        what = "one of `experiments` in the params file, in models/variants/NAME-SEED (or models/ablations/)"
        own.add_argument("--variant", metavar="NAME", required=needed, help=what)
        own.add_argument("--seed", type=int, metavar="SEED", required=needed, help="what the variant is trained from")
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
    estimating = commands.add_parser(
        "estimate",
        help="say what training will take: parameters, memory, largest micro-batch, hours",
        description="Says what `blsp train` would take with this params file, on GPUs of one kind: parameters and "
        "memory by part, the largest train.micro_batch_tokens that fits, steps, epochs and hours. It reads the "
        "configurations that `blsp backbones` brought, and rehearses one micro-batch without weights, in seconds and "
        "without a GPU.",
        epilog="example: blsp estimate --gpu a100-80 --gpus 8",
    )
    estimating.add_argument("--gpu", choices=GPU_NAMES, default="h200", help="kind of device (default: %(default)s)")
    estimating.add_argument("--gpus", type=_count, default=1, metavar="N", help="how many (default: %(default)s)")
    estimating.add_argument(
        "--utilisation",
        type=_share,
        default=0.4,
        metavar="SHARE",
        help="share of a device's peak that training reaches, for the hours (default: %(default)s)",
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.stage in VARIANTS and (options.variant is None) != (options.seed is None):
        commands.choices[options.stage].error("--variant and --seed are given together")
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

            params, places = _training(params, options.variant, options.seed)
            run_id = tracking.sync(params, places)
            print(f"MLflow run {run_id}" if run_id else "nothing recorded: BLSP_TRACKING=off")
        elif options.stage == "check":
            from blsp import check

            check.run(params)
        elif options.stage == "estimate":
            _estimate(params, options.gpu, options.gpus, options.utilisation)
        else:
            # Weights load in seconds; the stages show progress of their own.
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
            if options.stage == "train":
                params, places = _training(params, options.variant, options.seed)
                from blsp.training import launch, train

                if not launch.train_on_every_device(arguments):
                    train.run(params, places)
            elif options.stage == "measure":
                from blsp.paper import measure

                measure.run(*_training(params, options.variant, options.seed))
            else:
                importlib.import_module({**STAGES, **PAPER}[options.stage][0]).run(params)
    except BlspError as error:
        print(f"blsp {options.stage}: {error}", file=sys.stderr)
        return 1
    return 0


def _training(params: Params, variant: str | None, seed: int | None) -> tuple[Params, Places]:
    """What is trained and where: the pipeline's own adapter, or a variant."""
    if variant is None or seed is None:
        return params, PIPELINE
    group = "ablations" if variant in params.experiments.ablations else "variants"
    return params.variant(variant, seed), places_of(variant, seed, group)


def _estimate(params: Params, gpu: str, gpus: int, utilisation: float) -> None:
    """Nothing; what training will take is printed, and what was assumed."""
    from pathlib import Path

    from blsp.backbones import pins
    from blsp.estimate.lengths import mean_lengths

    folders = {part: Path(pin["name"]) for part, pin in pins().items()}
    for folder in folders.values():
        if not (folder / "config.json").is_file():
            raise BlspError(f"{folder} has no config.json; run `blsp backbones` first")
    from transformers import AutoConfig

    from blsp.estimate.estimate import GPUS, USABLE_SHARE, estimate, table, this_cpu

    lengths = mean_lengths(params.train.shares)
    device = this_cpu() if gpu == "cpu" else GPUS[gpu]
    found = estimate(
        AutoConfig.from_pretrained(folders["speech"]),
        AutoConfig.from_pretrained(folders["llm"]),
        params.train,
        lengths,
        device,
        gpus,
        utilisation,
    )
    print(table(found, params.train, device, lengths.utterances))
    tflops = device.bfloat16_tflops if params.train.precision == "bfloat16" else device.float32_tflops
    measured = ", measured now" if gpu == "cpu" else ""
    print("\nassumed:")
    for line in (
        f"{gpus:,} x {gpu}: {tflops:,.4g} TFLOP/s dense in {params.train.precision}{measured}, "
        f"of which {utilisation:.0%} are reached",
        *lengths.sources,
        "every utterance of mean length, nothing padded, frames encoded in every epoch, no compilation",
        f"{USABLE_SHARE:.0%} of the memory can be used; the time on dev and for loading is not counted",
    ):
        print(f"  {line}")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on; found {text}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"must be a share above 0, at most 1; found {text}")
    return share
