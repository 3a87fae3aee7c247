"""The loader: worker processes change nothing but who reads."""

import pytest
import torch

from blsp.errors import BlspError
from tests.training.test_loop import SETTINGS, training

AHEAD = SETTINGS.model_copy(update={"workers": 2, "batch_size": 2})


def test_workers_change_nothing(pins, clips, tmp_path):
    here, log, _ = training(pins, clips, tmp_path / "here", AHEAD.model_copy(update={"workers": 0}))
    ahead, ahead_log, seen = training(pins, clips, tmp_path / "ahead", AHEAD)
    assert all(torch.equal(here.adapter_state()[name], tensor) for name, tensor in ahead.adapter_state().items())
    assert [record["loss"] for record in log] == [record["loss"] for record in ahead_log]
    assert not seen, "workers read, this process does not"


def test_an_unreadable_utterance_is_told_in_one_line(pins, clips, tmp_path):
    """As its own error says it, without the worker's traceback; what was learned before is kept."""

    def unreadable(choice):
        raise BlspError("shard-7: the audio of u1 cannot be read")

    with pytest.raises(BlspError) as raised:
        training(pins, clips, tmp_path, AHEAD, on_example=unreadable)
    assert str(raised.value) == "shard-7: the audio of u1 cannot be read"
