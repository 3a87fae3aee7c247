"""What each process of test_processes.py runs: short trainings, one after the other, and what it tells of each."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from accelerate import PartialState
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from blsp.errors import BlspError
from tests.training.test_loop import SETTINGS, training


def main() -> None:
    jobs = json.loads(sys.argv[1])
    PartialState(cpu=True)
    for job in jobs:
        run(**job)


def run(pins, out, scratch, terminate_after=None, **settings):
    """Nothing; a training has ended, and `out` holds its adapter, its log and what this process tells of itself."""
    rng = np.random.default_rng(1)
    clips = [rng.normal(0, 0.1, int(seconds * 16_000)).astype(np.float32) for seconds in (0.35, 1.1, 5.3)]
    settings = SETTINGS.model_copy(update={"steps": 6, "validate_every": 6, **settings})
    state = PartialState()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []

    def on_example(choice):
        drawn.append(choice)
        if state.is_main_process and len(drawn) == terminate_after:
            os.kill(os.getpid(), signal.SIGTERM)  # of this process alone: the others have to learn of it

    told = {"stopped": None}
    try:
        model, log, told["seen"] = training(pins, clips, Path(scratch), settings, on_example=on_example)
    except BlspError as error:
        told["stopped"] = str(error)
    else:
        layers = [p for name, p in model.language_model.named_parameters() if ".layers." in name]
        held = [p.to_local() if isinstance(p, DTensor) else p for p in layers]
        told["layer_bytes"] = sum(p.numel() * p.element_size() for p in held)
        if state.is_main_process:
            save_file(model.adapter_state(), folder / "adapter.safetensors")
            (folder / "log.json").write_text(json.dumps(log))
    (folder / f"told-{state.process_index}.json").write_text(json.dumps(told))
    state.wait_for_everyone()


if __name__ == "__main__":
    main()
