"""The warm start: it brings speech vectors to words, goes on where it was stopped, and then leaves the segmenter be."""

import numpy as np
import pytest
import torch

from blsp.model.adapter import WordAdapter
from blsp.training.checkpoint import Checkpoints
from blsp.training.examples import Collator
from blsp.training.loop import train_adapter
from blsp.training.plan import Plan, Sizes
from blsp.training.warm_start import warm_start
from tests import tiny
from tests.training.test_loop import SETTINGS
from tests.training.test_objective import examples

DOWNSAMPLING = {"word": 8, "conv": 4, "stack": 4}


class Stop(Exception):
    """In the place of a kill."""


def warmed(pins, clips, scratch, stop_at=None, adapter="word", steps=150):
    """A model after the warm start on these clips; stopped at the batch `stop_at`."""
    torch.manual_seed(1)
    model, processor = tiny.build(pins, adapter=adapter, downsampling=DOWNSAMPLING[adapter])
    rows = examples(clips, processor.tokenizer)
    frames = np.array([processor.frame_count(len(clip)) for clip in clips])
    ones = np.ones(len(rows), dtype=int)
    plan = Plan(Sizes(frames, {"repetition": ones}, {"repetition": ones}), {"repetition": 1.0}, len(rows), 1)
    read = 0

    def example(choice):
        nonlocal read
        read += 1
        if stop_at is not None and read > stop_at * len(rows):
            raise Stop
        return rows[choice.row]

    transcripts = [row.transcript for row in rows]
    checkpoints = Checkpoints({"phase": "warm start"}, scratch)
    warm_start(model, Collator(processor), plan, example, transcripts, steps, checkpoints, checkpoint_every=20)
    return model, processor, rows, plan


def distance(model, processor, rows):
    """How far the nearest speech vector is from each word that was said: mean square, in all rows."""
    frames, counts = model.encode_audio(**Collator(processor).audio(rows))
    adapter = model.multi_modal_projector.eval()
    with torch.inference_mode():
        if isinstance(adapter, WordAdapter):
            vectors, lengths = adapter.vectors(frames, counts)
            vectors = adapter.read(vectors.flatten(0, 1), model.get_input_embeddings())[1].view_as(vectors)
        else:
            vectors, lengths = adapter(frames, counts)
    found = []
    for row, length, example in zip(vectors, lengths, rows, strict=True):
        ids = processor.tokenizer(" " + example.transcript, add_special_tokens=False).input_ids
        words = model.get_input_embeddings().weight.detach()[ids]
        found.append(torch.cdist(words, row[:length]).square().min(1).values / words.shape[1])
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("adapter", ["word", "conv", "stack"])
def test_vectors_come_to_the_words_they_stand_for(pins, clips, tmp_path, adapter):
    model, processor, rows, _ = warmed(pins, clips, tmp_path, adapter=adapter)
    torch.manual_seed(1)
    fresh, _ = tiny.build(pins, adapter=adapter, downsampling=DOWNSAMPLING[adapter])
    assert distance(model, processor, rows) < 0.5 * distance(fresh, processor, rows)


def test_a_word_adapter_gives_as_many_vectors_as_words_after_its_filler(pins, clips, tmp_path):
    model, processor, rows, _ = warmed(pins, clips, tmp_path, steps=300)
    adapter = model.multi_modal_projector.eval()
    frames, counts = model.encode_audio(**Collator(processor).audio(rows))
    with torch.inference_mode():
        vectors, lengths = adapter(frames, counts, model.get_input_embeddings())
    space = processor.tokenizer(" ", add_special_tokens=False).input_ids
    torch.testing.assert_close(adapter.filler.detach(), model.get_input_embeddings().weight[space].mean(0))
    for row, length, example in zip(vectors, lengths, rows, strict=True):
        is_word = (row[:length] != adapter.filler).any(-1)
        tokens = len(processor.tokenizer(" " + example.transcript, add_special_tokens=False).input_ids)
        assert abs(int(is_word.sum()) - min(tokens, int(length))) <= max(2, tokens // 2)
        assert is_word.any() and torch.equal(is_word, is_word.sort(stable=True).values)


def test_a_killed_warm_start_goes_on_to_the_same_bits(pins, clips, tmp_path):
    whole = warmed(pins, clips, tmp_path / "whole", steps=40)[0].adapter_state()
    with pytest.raises(Stop):
        warmed(pins, clips, tmp_path / "killed", stop_at=30, steps=40)
    resumed = warmed(pins, clips, tmp_path / "killed", steps=40)[0].adapter_state()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_alignment_leaves_the_segmenter_as_the_warm_start_made_it(pins, clips, tmp_path):
    model, processor, rows, plan = warmed(pins, clips, tmp_path, steps=20)
    before = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    settings = SETTINGS.model_copy(
        update={"steps": 4, "adapter": "word", "warm_start": "ctc", "downsampling": DOWNSAMPLING["word"]}
    )
    checkpoints = Checkpoints({"run": 1}, tmp_path)
    collator = Collator(processor)
    train_adapter(
        model, collator, plan, lambda c: rows[c.row], {"repetition": [rows]}, settings, checkpoints, lambda *_: None
    )
    for name, tensor in model.adapter_state().items():
        fixed = ".segmenter." in name or ".mark." in name or name.endswith(".known")
        assert torch.equal(tensor, before[name]) == fixed, name
