"""What a machine is, as far as the last bits of a training depend on it."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from blsp.tracking.machine import processor

# Which of these a processor has decides which kernels PyTorch and its libraries choose.
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
LIBRARIES = ("torch", "transformers", "accelerate", "numpy")


def facts() -> dict[str, Any]:
    """This machine and its libraries: processor, instruction sets, threads, GPUs, versions, memory in GiB."""
    import torch  # takes seconds

    model, flags = processor()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "gpus": gpus,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{fact: [one's, the other's]} of the facts by which two machines are not of one type; memory and the number of
    cores that nothing uses are no such facts."""
    kinds = ("cpu", "cpu_flags", "cpu_kernels", "architecture", "threads", "gpus", "system", "python", *LIBRARIES)
    return {name: [one.get(name), other.get(name)] for name in kinds if one.get(name) != other.get(name)}


def in_words(found: Mapping[str, Any]) -> str:
    """One line."""
    gpus = ", ".join(found.get("gpus") or []) or "no GPU"
    return (
        f"{found.get('cpu')} ({found.get('cpu_kernels')} kernels, {found.get('threads')} threads), {gpus}, "
        f"Python {found.get('python')}, torch {found.get('torch')}"
    )
