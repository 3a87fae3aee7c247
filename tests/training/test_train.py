"""What the train stage is put together from: audio straight from the shards, checkpoints, the loop."""

import io

import pyarrow as pa
import pytest
import soundfile
import torch

from blsp.data.index import SplitIndex
from blsp.errors import BlspError
from blsp.training.train import _check_stored
from tests import tiny
from tests.training import test_loop
from tests.training.test_loop import SETTINGS, training
from tests.training.test_objective import examples


def packed(folder, rows, kept_temperature=None):
    """The index of a split whose one shard holds these examples' audio, one after the other."""
    shard, table, offset = folder / "recording.000000.tar", [], 0
    with shard.open("wb") as stream:
        for example in rows:
            encoded = io.BytesIO()
            soundfile.write(encoded, example.load_samples(), tiny.SECOND, format="WAV", subtype="FLOAT")
            size = stream.write(encoded.getvalue())
            written = {"transcript": example.transcript, "instruction": example.prompt, "style": None}
            written |= {"token_ids": example.response_ids, "kept_ids": None, "kept_logprobs": None}
            written |= {"kept_temperature": kept_temperature}
            place = {"shard": 0, "offset": offset, "size": size}
            table.append({"id": example.id, "num_samples": example.num_samples, "repetition": written, **place})
            offset += size
    return SplitIndex(pa.Table.from_pylist(table), (shard,), ("repetition",))


def test_a_shard_that_cannot_be_read_stops_the_run_and_loses_nothing(pins, clips, tmp_path, monkeypatch):
    index = packed(tmp_path, examples(clips, tiny.build(pins)[1].tokenizer))
    monkeypatch.setattr(test_loop, "examples", lambda *_: [index.example(row, "repetition") for row in range(3)])
    settings = SETTINGS.model_copy(update={"batch_size": 1})
    whole, _, all_seen = training(pins, clips, tmp_path / "whole", settings)
    shard, drawn = index.recordings[0], []
    content = shard.read_bytes()

    def break_shard(choice):
        drawn.append(choice.row)
        if len(drawn) == 12:
            shard.write_bytes(b"")

    with pytest.raises(BlspError, match=r"recording.000000.tar: the audio of u\d cannot be read .* run `blsp corpus`"):
        training(pins, clips, tmp_path / "stopped", settings, on_example=break_shard)
    assert list((tmp_path / "stopped").glob("train/*/step-*"))
    shard.write_bytes(content)
    resumed, _, seen = training(pins, clips, tmp_path / "stopped", settings)
    assert 0 < len(seen) < len(all_seen)
    assert all(torch.equal(whole.adapter_state()[name], tensor) for name, tensor in resumed.adapter_state().items())


@pytest.mark.parametrize(("stored", "shown"), [(None, "none"), (1.0, "1")])
def test_a_stored_teacher_of_another_temperature_is_refused(pins, clips, tmp_path, stored, shown):
    index = packed(tmp_path, examples(clips, tiny.build(pins)[1].tokenizer), stored)
    with pytest.raises(BlspError, match=rf"temperature 2 .* data/continuations has it at: {shown}; set continuations"):
        _check_stored(index.kept_temperatures(), 2.0)
    if stored:
        _check_stored(index.kept_temperatures(), stored)
