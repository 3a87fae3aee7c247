import os
import stat
from pathlib import Path

import pytest

from blsp.tracking import machine
from blsp.tracking.machine import machine_tags

SMI = """#!/bin/sh
echo "0, GPU-aaaa, NVIDIA H200, 143771"
echo "1, GPU-bbbb, NVIDIA H200, 143771"
echo "2, GPU-cccc, NVIDIA L40S, 46068"
"""


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of three GPUs, as its driver's program lists them."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, "1 x NVIDIA L40S (45 GiB), 2 x NVIDIA H200 (140 GiB)"),
        ("1", "1 x NVIDIA H200 (140 GiB)"),
        ("GPU-aaaa,GPU-cc", "1 x NVIDIA L40S (45 GiB), 1 x NVIDIA H200 (140 GiB)"),
        ("", "none"),
    ],
)
def test_the_gpus_that_may_be_used_are_counted_by_kind(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: str
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    kinds = machine_tags()["blsp.machine.gpus"]
    assert sorted(kinds.split(", ")) == sorted(found.split(", "))


def test_a_machine_without_gpus_has_processors_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "8")
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Some CPU @ 2 GHz\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    found = machine_tags()
    assert found["blsp.machine.gpus"] == "none"
    assert found["blsp.machine.cpu"] == f"{len(os.sched_getaffinity(0))} x Some CPU @ 2 GHz"
    assert found["blsp.machine.processes"] == "8"
    assert int(found["blsp.machine.memory_gib"]) > 0
    assert "torch " in found["blsp.machine.software"]
