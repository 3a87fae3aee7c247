"""The machine that trains, as tags of its run: what a figure of time or memory is worth depends on it."""

import os
import platform
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path

MACHINE = "blsp.machine."  # what begins the names of the tags
CPU_INFO = Path("/proc/cpuinfo")
GPU_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")


def machine_tags() -> dict[str, str]:
    """{`blsp.machine.cpu`: "2 x Intel Xeon ...", `.memory_gib`, `.gpus`, `.processes`, `.software`} of this process's.

    A GPU that CUDA_VISIBLE_DEVICES hides is left out. Processes are those that torchrun started.
    """
    facts = {
        "cpu": f"{len(os.sched_getaffinity(0))} x {processor()[0]}",
        "memory_gib": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f}",
        "gpus": _gpus() or "none",
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "software": f"Python {platform.python_version()}, torch {version('torch')}, "
        f"transformers {version('transformers')}, {platform.system()} {platform.machine()}",
    }
    return {MACHINE + key: value for key, value in facts.items()}


def processor() -> tuple[str, set[str]]:
    """Its name and its instruction sets, as Linux lists them; elsewhere its architecture and none."""
    text = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.exists() else ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = fields.get("flags") or fields.get("features") or ""
    return fields.get("model name") or platform.machine(), set(flags.split())


def _gpus() -> str:
    """`8 x NVIDIA H200 (140 GiB)`; empty where there is none."""
    try:
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    lines = [] if done.returncode else done.stdout.splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [one.strip() for one in visible.split(",") if one.strip()]
        named = [row for row in rows if any(one == row[0] or row[1].startswith(one) for one in wanted)]
        rows = (named or rows) if wanted else []  # a part of a GPU (MIG) goes by a name that is not listed
    kinds = Counter(f"{name} ({float(mib) / 1024:.0f} GiB)" for _, _, name, mib in rows)
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
