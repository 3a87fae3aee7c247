"""accelerate's configurations as accelerate itself reads and translates them."""

from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

CONFIGS = Path(__file__).parents[2] / "infra/accelerate"


@pytest.mark.parametrize(("name", "machines"), [("one-machine", 1), ("several-machines", 2)])
def test_it_launches_the_train_stage_on_every_machine(name, machines, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    arguments = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", str(8 * machines)]
    if machines > 1:
        arguments += ["--rdzv_backend", "c10d", "--main_process_ip", "first", "--main_process_port", "29500"]
    launched, *_ = _validate_launch_command(launch_command_parser().parse_args([*arguments, "-m", "blsp", "train"]))
    environment = prepare_multi_gpu_env(launched)
    assert (launched.training_script, launched.training_script_args) == ("blsp", ["train"]) and launched.module
    assert str(launched.nproc_per_node) == "8"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no", "train.precision decides"
    if machines > 1:
        assert (str(launched.nnodes), launched.rdzv_backend, launched.rdzv_endpoint) == ("2", "c10d", "first:29500")
