"""The frame cache: what comes out is what went in, and nothing half-written is taken for whole."""

import numpy as np
import torch

from blsp.training.examples import Collator
from blsp.training.frames import FrameCache
from tests.training.test_objective import examples

COUNTS = np.array([3, 5, 2])


def test_frames_come_back_in_any_order_and_process(tmp_path):
    cache = FrameCache(tmp_path, ["encoder"], COUNTS, width=4)
    frames = [torch.randn(count, 4) for count in COUNTS]
    for row in (2, 0):
        cache.put(row, frames[row])
    again = FrameCache(tmp_path, ["encoder"], COUNTS, width=4)
    assert torch.equal(again.get(0), frames[0]) and torch.equal(again.get(2), frames[2]) and again.get(1) is None


def test_another_encoder_or_corpus_has_another_cache(tmp_path):
    FrameCache(tmp_path, ["encoder"], COUNTS, 4).put(0, torch.randn(3, 4))
    assert FrameCache(tmp_path, ["other"], COUNTS, 4).get(0) is None
    assert FrameCache(tmp_path, ["encoder"], COUNTS[:2], 4).get(0) is None


def test_a_row_that_was_half_written_is_not_there(tmp_path):
    cache = FrameCache(tmp_path, ["encoder"], COUNTS, 4)
    cache.put(1, torch.randn(5, 4))
    cache._frames[3 * 4 + 7] += 1  # as if the writer had been killed between frames and checksum
    assert cache.get(1) is None


def test_cached_frames_give_the_same_batch(tiny_model, clips, tmp_path):
    model, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    counts = np.array([processor.frame_count(len(clip)) for clip in clips])
    cache = FrameCache(tmp_path, [], counts, model.config.audio_config.d_model)
    first = Collator(model, processor, cache)(rows)
    unread = [replace_audio(e) for e in rows[::-1]]
    second = Collator(model, processor, cache)(unread)
    assert torch.equal(first.frames[0, : counts[0]], second.frames[2, : counts[0]])
    assert second.frame_counts.tolist() == counts[::-1].tolist()


def replace_audio(example):
    from dataclasses import replace

    def fail():
        raise AssertionError("cached audio is not read again")

    return replace(example, load_samples=fail)
