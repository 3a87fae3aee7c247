"""`blsp train` on every accelerator of the machine: a process for each, as torchrun would start them."""

import os
import sys
from collections.abc import Sequence

from blsp.errors import BlspError


def train_on_every_device(arguments: Sequence[str]) -> bool:
    """Whether `blsp` with these arguments was run in several processes: it was not where there is one device or none,
    or where a launcher (torchrun, accelerate) has started this process already.

    Raises BlspError where a process failed; it has said why.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    devices = torch.accelerator.device_count()
    if devices < 2 or "LOCAL_RANK" in os.environ:
        return False
    config = LaunchConfig(
        1, 1, devices, run_id="blsp", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    try:
        elastic_launch(config, sys.executable)("-m", "blsp", *arguments)
    except ChildFailedError:
        raise BlspError(f"one of {devices} processes failed, and all were stopped; its message is above") from None
    except SignalException as error:
        raise BlspError(f"stopped by {error.sigval.name}; run it again to go on") from None
    return True
