"""Where a run is, on disk: a killed run goes on from its last checkpoint as if nothing had happened.

    <scratch>/train/<key>/step-00000120/{adapter,optimizer}.safetensors, state.json
    <scratch>/train/<key>/best/model.safetensors        the adapter that was nearest to text on dev

Scratch lies outside the workspace (BLSP_SCRATCH, or the user's cache folder): DVC removes the outputs of a stage
that failed, and runners clone into temporary folders. The key names settings and data, so that a run never goes
on from another's checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from blsp.errors import BlspError
from blsp.files import replace_dir, write_json

SCRATCH_VARIABLE = "BLSP_SCRATCH"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def scratch_folder() -> Path:
    """The folder for what may be lost without loss: BLSP_SCRATCH, or `blsp` in the user's cache folder."""
    if chosen := os.environ.get(SCRATCH_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blsp"


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimiser steps made, records logged, and the best measurement on dev (KL) so far."""

    step: int
    records: list[dict[str, float]]
    best_kl: float | None


class Checkpoints:
    """The last checkpoint of one run, and the best adapter it has seen. `key` is all that decides the run."""

    def __init__(self, key: Mapping[str, Any], scratch: Path | None = None) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder = (scratch or scratch_folder()) / "train" / name

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, is_main: bool) -> None:
        """Nothing; the run can go on from here. Every process takes part, the main one writes.

        Raises BlspError where the disk does not take it; the checkpoint before it then still counts.
        """
        adapter: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
        state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
        if not is_main:
            return
        tensors = {
            f"{parameter}/{name}": value.contiguous()
            for parameter, moments in state["state"].items()
            for name, value in moments.items()
        }
        tensors["rng"] = torch.get_rng_state()
        try:
            with replace_dir(self.folder / f"step-{progress.step:08d}") as folder:
                save_file({name: value.contiguous() for name, value in adapter.items()}, folder / "adapter.safetensors")
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

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """How far the run was, with model and optimiser as they were then; None where there is no checkpoint."""
        if not (complete := self._complete()):
            return None
        folder = complete[-1]
        saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "optimizer.safetensors")
        torch.set_rng_state(tensors.pop("rng"))
        options = StateDictOptions(full_state_dict=True, strict=False)
        adapter: dict[str, Any] = load_file(folder / "adapter.safetensors")
        set_model_state_dict(model, adapter, options=options)
        moments: dict[str, Any] = {}
        for name, tensor in tensors.items():
            parameter, _, moment = name.rpartition("/")
            moments.setdefault(parameter, {})[moment] = tensor
        state: dict[str, Any] = {"state": moments, "param_groups": saved.pop("param_groups")}
        set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
        return Progress(**saved)

    def keep_best(self, adapter: Mapping[str, torch.Tensor]) -> None:
        """Nothing; these are the best adapter's tensors."""
        with replace_dir(self.folder / "best") as folder:
            save_file({name: value.contiguous() for name, value in adapter.items()}, folder / "model.safetensors")

    def best(self) -> dict[str, torch.Tensor] | None:
        """The best adapter's tensors, None where dev was never measured."""
        file = self.folder / "best" / "model.safetensors"
        return load_file(file) if file.is_file() else None

    def clear(self) -> None:
        """Nothing; the run is done and its checkpoints are gone."""
        shutil.rmtree(self.folder, ignore_errors=True)
