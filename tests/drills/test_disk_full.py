"""A disk with no room for what training saves."""

import contextlib
import os
import re
import resource
import subprocess
from collections.abc import Iterator

import psutil

from infra.processes import pid_of
from tests.drills.site import Site

WIDE = ["train.bottleneck=4096"]  # whose checkpoint is many times ROOM_BYTES
ROOM_BYTES = 2 << 20


@contextlib.contextmanager
def full(here: Site) -> Iterator[None]:
    """Scratch is a disk of ROOM_BYTES. Where this user may mount none, no run can write a file longer than that."""
    scratch = here.state / "scratch/train"
    scratch.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(scratch)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(scratch)], check=True)
        return
    number = pid_of("worker", here.state)
    assert number is not None
    worker = psutil.Process(number)
    before = worker.rlimit(resource.RLIMIT_FSIZE)
    worker.rlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, before[1]))
    try:
        yield
    finally:
        worker.rlimit(resource.RLIMIT_FSIZE, before)


def test_disk_full_while_a_run_trains(here: Site) -> None:
    here.forget_training(in_lock=False)
    before = here.contents()
    with full(here):
        run = here.start("training", WIDE)
        state = here.ended(run)
    assert state.is_failed() and state.message
    assert re.search(r"stage 'train' failed: .*the checkpoint of step 5 could not be written", state.message), state
    assert re.search("No space left on device|File too large", state.message) and "make room" in state.message
    assert here.contents() == before and here.stale("train") == {}
    assert not list((here.state / "scratch/train").glob("*/.step-*"))

    assert here.completed(here.start("training", WIDE)).message == "1 of 6 stages ran, 5 skipped"
    assert here.stale("train") == {} and here.recorded()
