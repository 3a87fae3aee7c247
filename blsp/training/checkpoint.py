"""Where a run is, on disk: a killed run goes on from its last checkpoint as if nothing had happened.

    <scratch>/train/<key>/step-00000120/{adapter,optimizer}.safetensors, state.json
    <scratch>/train/<key>/best/model.safetensors        the adapter that was nearest to text on dev

Scratch lies outside the workspace (BLSP_SCRATCH, or the user's cache folder): DVC removes the outputs of a stage
that failed, and runners clone into temporary folders. The key names settings and data, so that a run never goes
on from another's checkpoint. The main process writes and reads; the others are told, wherever they run.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from blsp.errors import BlspError
from blsp.files import SCRATCH_VARIABLE, replace_dir, scratch_folder, write_json


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimiser steps made, records logged, and the best `dev_share` so far."""

    step: int
    records: list[dict[str, float]]
    best: float | None


class Checkpoints:
    """The last checkpoint of one run, and the best adapter it has seen. `key` is all that decides the run."""

    def __init__(self, key: Mapping[str, Any], scratch: Path | None = None) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder = (scratch or scratch_folder()) / "train" / name

    def save(self, adapter: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Nothing; the run can go on from here.

        Raises BlspError where the disk does not take it; the checkpoint before it then still counts.
        """
        if not PartialState().is_main_process:
            return
        state = optimizer.state_dict()
        tensors = {
            f"{parameter}/{name}": value.contiguous()
            for parameter, moments in state["state"].items()
            for name, value in moments.items()
        }
        tensors["rng"] = torch.get_rng_state()
        try:
            with replace_dir(self.folder / f"step-{progress.step:08d}") as folder:
                save_file(_contiguous(adapter.state_dict()), folder / "adapter.safetensors")
                save_file(tensors, folder / "optimizer.safetensors")
                write_json(folder / "state.json", {**vars(progress), "param_groups": state["param_groups"]})
        except (OSError, SafetensorError) as error:
            raise BlspError(
                f"{self.folder}: the checkpoint of step {progress.step} could not be written ({error}); make room, or "
                f"set {SCRATCH_VARIABLE} to a folder that has some, and run it again: it goes on from the one before"
            ) from None
        for older in self._complete()[:-1]:
            shutil.rmtree(older)

    def _complete(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def load(self, adapter: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """How far the run was, with adapter and optimiser as they were then; None where there is no checkpoint.

        One whose tensors this version's adapter does not have counts for nothing, and is removed.
        """
        saved = [self._read() if PartialState().is_main_process else None]
        broadcast_object_list(saved)
        if saved[0] is None:
            return None
        state, weights, tensors = saved[0]
        if _shapes(weights) != _shapes(adapter.state_dict()):
            if PartialState().is_main_process:
                print(f"{self.folder}: its checkpoint is of another version's adapter; begun anew", flush=True)
                self.clear()
            return None
        torch.set_rng_state(tensors.pop("rng"))
        adapter.load_state_dict(weights)
        moments: dict[int, Any] = {}
        for name, tensor in tensors.items():
            parameter, _, moment = name.partition("/")
            moments.setdefault(int(parameter), {})[moment] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": state.pop("param_groups")})
        return Progress(**state)

    def _read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
        """The last checkpoint: its state, the adapter's tensors and the optimiser's."""
        if not (complete := self._complete()):
            return None
        folder = complete[-1]
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return state, load_file(folder / "adapter.safetensors"), load_file(folder / "optimizer.safetensors")

    def keep_best(self, adapter: Mapping[str, torch.Tensor]) -> None:
        """Nothing; these are the best adapter's tensors."""
        with replace_dir(self.folder / "best") as folder:
            save_file(_contiguous(adapter), folder / "model.safetensors")

    def best(self) -> dict[str, torch.Tensor] | None:
        """The best adapter's tensors, None where dev was never measured."""
        file = self.folder / "best" / "model.safetensors"
        return load_file(file) if file.is_file() else None

    def clear(self) -> None:
        """Nothing; the run is done and its checkpoints are gone."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
