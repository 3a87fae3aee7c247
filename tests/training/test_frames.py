"""The frame cache: what comes out is what went in, filled the same way whoever fills it."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from blsp.errors import BlspError
from blsp.training import frames as frames_module
from blsp.training.examples import Collator
from blsp.training.frames import FrameCache
from tests.training.test_objective import examples

COUNTS = np.array([3, 5, 2])
IDS = ["a", "b", "c"]


@pytest.fixture
def utterances(tiny_model, clips):
    """Three examples, and a function that opens their cache in a folder."""
    model, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    counts = np.array([processor.frame_count(len(clip)) for clip in clips])
    return rows, lambda folder: FrameCache(folder, [], [e.id for e in rows], counts, model.config.audio_config.d_model)


def test_frames_come_back_in_any_order_and_process(tmp_path):
    cache = FrameCache(tmp_path, ["encoder"], IDS, COUNTS, width=4)
    frames = [torch.randn(count, 4) for count in COUNTS]
    for row in (2, 0):
        cache.put(row, frames[row])
    again = FrameCache(tmp_path, ["encoder"], IDS, COUNTS, width=4)
    assert torch.equal(again.get("a"), frames[0]) and torch.equal(again.get("c"), frames[2])
    assert again.get("b") is None and again.get("of another split") is None


def test_another_encoder_or_corpus_has_another_cache(tmp_path):
    FrameCache(tmp_path, ["encoder"], IDS, COUNTS, 4).put(0, torch.randn(3, 4))
    assert FrameCache(tmp_path, ["other"], IDS, COUNTS, 4).get("a") is None
    assert FrameCache(tmp_path, ["encoder"], IDS[:2], COUNTS[:2], 4).get("a") is None


def test_a_row_that_was_half_written_is_not_there(tmp_path):
    cache = FrameCache(tmp_path, ["encoder"], IDS, COUNTS, 4)
    cache.put(1, torch.randn(5, 4))
    cache._frames[3 * 4 + 7] += 1  # as if the writer had been killed between frames and checksum
    assert cache.get("b") is None


def test_it_is_filled_with_what_the_encoder_hears(tiny_model, clips, utterances, tmp_path):
    model, processor = tiny_model
    rows, open_cache = utterances
    cache = open_cache(tmp_path)
    cache.fill(model, processor, lambda row: clips[row])
    for example, clip in zip(rows, clips, strict=True):
        frames, _ = model.encode_audio(**processor.features([clip]))
        torch.testing.assert_close(cache.get(example.id), frames[0], rtol=1e-4, atol=1e-4)


def test_a_killed_filling_goes_on_and_ends_with_the_same_frames(tiny_model, clips, utterances, tmp_path, monkeypatch):
    """Also where the batch that was left half done holds frames already: their last bits depend on the batch."""
    monkeypatch.setattr(frames_module, "BATCH_FRAMES", 120)
    rows, open_cache = utterances
    whole, stopped = open_cache(tmp_path / "whole"), open_cache(tmp_path / "stopped")
    whole.fill(*tiny_model, lambda row: clips[row])
    monkeypatch.setattr(stopped, "put", lambda row, frames: FrameCache.put(stopped, row, frames) if row == 0 else None)
    stopped.fill(*tiny_model, lambda row: clips[row])
    monkeypatch.undo()
    monkeypatch.setattr(frames_module, "BATCH_FRAMES", 120)
    heard = []
    open_cache(tmp_path / "stopped").fill(*tiny_model, lambda row: heard.append(row) or clips[row])
    again = open_cache(tmp_path / "stopped")
    assert heard[:2] == [0, 1] and all(torch.equal(again.get(e.id), whole.get(e.id)) for e in rows)
    again.fill(*tiny_model, lambda row: pytest.fail("all is there: nothing is read"))


def test_batches_of_known_utterances_need_no_audio(tiny_model, clips, utterances, tmp_path):
    model, processor = tiny_model
    rows, open_cache = utterances
    cache = open_cache(tmp_path)
    cache.fill(model, processor, lambda row: clips[row])
    unread = [replace(e, load_samples=lambda: pytest.fail("known audio is not read")) for e in rows[::-1]]
    batch, fresh = Collator(processor, cache)(unread), Collator(processor)(rows[::-1])
    frames, counts = model.encode_audio(**fresh.audio)
    assert torch.equal(batch.audio["counts"], counts)
    torch.testing.assert_close(batch.audio["frames"], frames, rtol=1e-4, atol=1e-4)


def test_an_utterance_of_another_split_is_encoded_each_time(tiny_model, clips, utterances, tmp_path):
    """Dev is measured with the same collator as train is learned with: its rows are not train's."""
    rows, open_cache = utterances
    cache = open_cache(tmp_path)
    cache.fill(*tiny_model, lambda row: clips[row])
    other = replace(rows[0], id="dev-0")
    assert set(Collator(tiny_model[1], cache)([other, rows[1]]).audio) == {"input_features", "input_features_mask"}


def test_caches_of_older_runs_make_room(tmp_path):
    names = ["oldest", "older", "now"]
    for age, name in enumerate(names):
        cache = FrameCache(tmp_path, [name], IDS, COUNTS, 4)
        os.utime(cache.place, (1000 + age, 1000 + age))
    cache.make_room(limit_bytes=2 * FrameCache.bytes_needed(COUNTS, 4))
    left = {place.name for place in tmp_path.iterdir()}
    assert cache.place.name in left and len(left) == 2
    cache.make_room(limit_bytes=0)
    assert [place.name for place in tmp_path.iterdir()] == [cache.place.name]


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BlspError, match=r"no room for encoder frames of .* \(No space left on device\); make room"):
        FrameCache(tmp_path, ["encoder"], IDS, COUNTS, 4)
