"""The loader: threads that read ahead change nothing but who reads when."""

import threading

import pytest
import torch

from blsp.errors import BlspError
from tests.training.test_loop import SETTINGS, training

AHEAD = SETTINGS.model_copy(update={"workers": 2, "batch_size": 2})


def test_workers_change_nothing(pins, clips, tmp_path):
    here, log, all_seen = training(pins, clips, tmp_path / "here", AHEAD.model_copy(update={"workers": 0}))
    readers = set()
    ahead, ahead_log, seen = training(
        pins, clips, tmp_path / "ahead", AHEAD, on_example=lambda _: readers.add(threading.current_thread().name)
    )
    assert all(torch.equal(here.adapter_state()[name], tensor) for name, tensor in ahead.adapter_state().items())
    assert [record["loss"] for record in log] == [record["loss"] for record in ahead_log]
    assert sorted(seen) == sorted(all_seen)
    assert len(readers) == 2 and threading.current_thread().name not in readers


def test_a_run_that_read_ahead_goes_on_where_it_had_computed(pins, clips, tmp_path):
    """What was read and not yet learned from is read again."""
    drawn = []

    def stop(choice):
        drawn.append(choice)
        if len(drawn) > 20:
            raise BlspError("shard-7: the audio of u1 cannot be read")

    with pytest.raises(BlspError) as raised:
        training(pins, clips, tmp_path / "stopped", AHEAD, on_example=stop)
    assert str(raised.value) == "shard-7: the audio of u1 cannot be read"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
    resumed, _, _ = training(pins, clips, tmp_path / "stopped", AHEAD)
    whole, _, _ = training(pins, clips, tmp_path / "whole", AHEAD)
    assert all(torch.equal(whole.adapter_state()[name], tensor) for name, tensor in resumed.adapter_state().items())
