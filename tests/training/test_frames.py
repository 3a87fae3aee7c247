"""The frame cache: what comes out is what went in, and nothing half-written is taken for whole."""

import numpy as np
import torch

from blsp.training.examples import Collator
from blsp.training.frames import FrameCache
from tests.training.test_objective import examples

COUNTS = np.array([3, 5, 2])
IDS = ["a", "b", "c"]


def test_frames_come_back_in_any_order_and_process(tmp_path):
    cache = FrameCache(tmp_path, ["encoder"], IDS, COUNTS, width=4)
    frames = {id_: torch.randn(count, 4) for id_, count in zip(IDS, COUNTS, strict=True)}
    for id_ in ("c", "a"):
        cache.put(id_, frames[id_])
    again = FrameCache(tmp_path, ["encoder"], IDS, COUNTS, width=4)
    assert (
        torch.equal(again.get("a"), frames["a"]) and torch.equal(again.get("c"), frames["c"]) and again.get("b") is None
    )


def test_another_encoder_or_corpus_has_another_cache(tmp_path):
    FrameCache(tmp_path, ["encoder"], IDS, COUNTS, 4).put("a", torch.randn(3, 4))
    assert FrameCache(tmp_path, ["other"], IDS, COUNTS, 4).get("a") is None
    assert FrameCache(tmp_path, ["encoder"], IDS[:2], COUNTS[:2], 4).get("a") is None


def test_a_row_that_was_half_written_is_not_there(tmp_path):
    cache = FrameCache(tmp_path, ["encoder"], IDS, COUNTS, 4)
    cache.put("b", torch.randn(5, 4))
    cache._frames[3 * 4 + 7] += 1  # as if the writer had been killed between frames and checksum
    assert cache.get("b") is None


def test_cached_frames_give_the_same_batch(tiny_model, clips, tmp_path):
    model, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    counts = np.array([processor.frame_count(len(clip)) for clip in clips])
    cache = FrameCache(tmp_path, [], [e.id for e in rows], counts, model.config.audio_config.d_model)
    first = Collator(model, processor, cache)(rows)
    unread = [replace_audio(e) for e in rows[::-1]]
    second = Collator(model, processor, cache)(unread)
    assert torch.equal(first.frames[0, : counts[0]], second.frames[2, : counts[0]])
    assert second.frame_counts.tolist() == counts[::-1].tolist()


def test_an_utterance_of_another_split_is_encoded_each_time(tiny_model, clips, tmp_path):
    """Dev is measured with the same collator as train is learned with: its rows are not train's."""
    model, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    counts = np.array([processor.frame_count(len(clip)) for clip in clips])
    cache = FrameCache(tmp_path, [], [f"train-{e.id}" for e in rows], counts, model.config.audio_config.d_model)
    cache.put("train-u0", torch.zeros(int(counts[0]), model.config.audio_config.d_model))
    for _ in range(2):
        batch = Collator(model, processor, cache)(rows)
        assert batch.frames[0].abs().sum() > 0 and cache.get("u0") is None


def replace_audio(example):
    from dataclasses import replace

    def fail():
        raise AssertionError("cached audio is not read again")

    return replace(example, load_samples=fail)
