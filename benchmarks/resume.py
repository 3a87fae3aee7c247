"""What stopping and going on costs a training run, at the size of the workspace it is run in.

    python -m benchmarks.resume [--steps 20]

Run in a workspace with data and backbones (`make demo`), of which nothing is changed: the run has its own folder and
its own scratch. `blsp train` runs three processes, one after the other: the first is stopped by SIGTERM half way, the
second goes on to the end, the third runs the same steps without a stop. Told apart are the start of a process (until
it looks for a checkpoint: imports, index, models), the checkpoint (saving, loading), the steps, and the process's end
after its last step. `save_and_load_s` is what the checkpoint costs a run that was stopped, `second_process_s` what the
start of one more process and the end of the stopped one cost it, `wall_beyond_one_process_s` both and the noise: wall
time of two processes less that of one. The last line is JSON; what it said, and when, is in benchmarks/LOG.md.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blsp.errors import BlspError
from blsp.params import load_params

SHARED = ("models/backbones", "data/corpus", "data/continuations", "params.yaml")
EVENTS = "events.jsonl"


def train_here(steps: int, stop_after: int) -> None:
    """Nothing; runs `blsp train` in the working directory and notes when what happened. `stop_after` 0: not at all.

    Timed are torch's own AdamW and the class Checkpoints, from outside.
    """
    import torch

    from blsp.training import train
    from blsp.training.checkpoint import Checkpoints

    def timed(name: str, function: Callable[..., Any], then: Callable[[], None] = lambda: None) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.time()
            result = function(*args, **kwargs)
            _note(name, began)
            then()
            return result

        return call

    made = 0

    def count() -> None:
        nonlocal made
        made += 1
        if made == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    checkpoints: Any = Checkpoints
    checkpoints.load, checkpoints.save = timed("load", Checkpoints.load), timed("save", Checkpoints.save)
    optimizer: Any = torch.optim.AdamW
    optimizer.step = timed("step", optimizer.step, count)
    params = load_params()
    settings = params.train.model_copy(
        update={"steps": steps, "checkpoint_every": 10**6, "validate_every": 10**6, "warmup_steps": 1}
    )
    try:
        train.run(params.model_copy(update={"train": settings}))
    except BlspError as error:
        print(error)
        if not stop_after:
            raise


def _note(name: str, began: float) -> None:
    with open(EVENTS, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"name": name, "began": began, "ended": time.time()}) + "\n")


def process(folder: Path, scratch: Path, steps: int, stop_after: int) -> dict[str, float]:
    """The figures of one process: seconds from its start, of its checkpoint, and its steps."""
    (folder / EVENTS).unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.resume", "--steps", str(steps), "--stop-after", str(stop_after)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "BLSP_SCRATCH": str(scratch), "BLSP_TRACKING": "off", "PYTHONPATH": path}
    began = time.time()
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True)
    ended = time.time()
    events = [json.loads(line) for line in (folder / EVENTS).read_text(encoding="utf-8").splitlines()]
    taken = {name: [e["ended"] - e["began"] for e in events if e["name"] == name] for name in ("load", "save")}
    loaded = next(e["ended"] for e in events if e["name"] == "load")
    # Loading makes a step of its own, for torch to lay out the optimiser's state.
    optimized = [e["ended"] for e in events if e["name"] == "step" and e["began"] >= loaded]
    return {
        "start_s": loaded - taken["load"][0] - began,
        "load_s": taken["load"][0],
        "first_step_s": optimized[0] - loaded,
        "step_s": (optimized[-1] - optimized[0]) / (len(optimized) - 1),
        "save_s": sum(taken["save"]),
        "end_s": ended - optimized[-1] - sum(taken["save"]),
        "steps": len(optimized),
        "wall_s": ended - began,
    }


def measure(steps: int) -> dict[str, Any]:
    """The figures of the three processes, and what a stop adds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, scratch = Path(temporary) / "workspace", Path(temporary) / "scratch"
        for name in SHARED:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(Path(name).resolve())
        adapter = folder / "models/adapter/model.safetensors"
        stopped = process(folder, scratch, steps, stop_after=steps // 2)
        checkpoint = sum(file.stat().st_size for file in scratch.glob("train/*/step-*/*"))
        resumed = process(folder, scratch, steps, stop_after=0)
        one = hashlib.sha256(adapter.read_bytes()).hexdigest()
        # Its own scratch: with the frames of the others it would be spared their encoding.
        whole = process(folder, Path(temporary) / "other", steps, stop_after=0)
        other = hashlib.sha256(adapter.read_bytes()).hexdigest()
    return {
        "save_and_load_s": stopped["save_s"] + resumed["load_s"],
        "second_process_s": resumed["start_s"] + stopped["end_s"],
        "wall_beyond_one_process_s": stopped["wall_s"] + resumed["wall_s"] - whole["wall_s"],
        "checkpoint_mib": checkpoint / 2**20,
        "same_adapter": one == other,
        "stopped": stopped,
        "resumed": resumed,
        "whole": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of the run, at least 4")
    parser.add_argument("--stop-after", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stop_after is not None:
        train_here(options.steps, options.stop_after)
        return
    result = measure(options.steps)
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
