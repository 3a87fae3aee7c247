"""What each process of test_processes.py runs: a short training, its adapter and what it saw written to a folder."""

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
    job = json.loads(sys.argv[1])
    out = Path(job["out"])
    rng = np.random.default_rng(1)
    clips = [rng.normal(0, 0.1, int(seconds * 16_000)).astype(np.float32) for seconds in (0.35, 1.1, 5.3)]
    settings = SETTINGS.model_copy(update=job["settings"])
    state = PartialState(cpu=True)
    drawn = []

    def on_example(choice):
        drawn.append(choice)
        if state.is_main_process and len(drawn) == job["terminate_after"]:
            os.kill(os.getpid(), signal.SIGTERM)  # of this process alone: the others have to learn of it

    try:
        scratch = Path(job["scratch"]) / str(job["machine"])
        model, log, seen = training(job["pins"], clips, scratch, settings, on_example=on_example)
    except BlspError as error:
        (out / f"stopped-{state.process_index}.txt").write_text(str(error))
        return
    layers = [p for name, p in model.language_model.named_parameters() if ".layers." in name]
    held = [p.to_local() if isinstance(p, DTensor) else p for p in layers]
    told = {"seen": seen, "layer_bytes": sum(p.numel() * p.element_size() for p in held)}
    (out / f"told-{state.process_index}.json").write_text(json.dumps(told))
    if state.is_main_process:
        save_file(model.adapter_state(), out / "adapter.safetensors")
        (out / "log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    main()
