"""From shards to examples: what is read is what was packed, and lengths are exact before any audio is read."""

import os

import numpy as np
import pytest

from blsp.data.batches import evaluation_batches, training_sizes
from blsp.data.index import load_index
from blsp.data.shards import iter_shards, load_cuts
from blsp.errors import BlspError
from blsp.model.chat import build_prompt
from blsp.prompts import Prompt
from blsp.training.examples import Collator
from blsp.training.prefixes import prompt_prefixes
from tests.contracts import packed


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = packed.good_rows()
    for row in rows:
        for behaviour, value in row.written.items():
            value["instruction"] = f"do {behaviour}"
    rows[0].written["repetition"] = None
    packed.pack(rows)
    return [row for row in rows if row.split == "train"]


def test_an_example_is_what_was_packed(corpus):
    index = load_index("train", ["continuation", "repetition"])
    assert len(index) == len(corpus)
    for row, (packed_row, cut) in enumerate(zip(corpus, load_cuts("train"), strict=True)):
        example = index.example(row, "continuation")
        assert example.id == packed_row.id == cut.id and example.transcript == packed_row.text
        assert np.array_equal(example.load_samples(), cut.load_audio()[0])
        assert example.prompt == Prompt("do continuation") and example.response_ids == [5, 6, 7]


def test_lengths_are_those_of_the_batch(corpus, tiny_model):
    model, processor = tiny_model
    index = load_index("train", ["continuation", "repetition"])
    sizes = training_sizes(index, model, processor)
    assert (sizes.targets["repetition"] == 0).sum() == (sizes.positions["repetition"] == 0).sum() == 1
    rows = [row for row in range(len(index)) if sizes.targets["repetition"][row]][:3]
    batch = Collator(processor)([index.example(row, "repetition") for row in rows])
    _, counts = model.encode_audio(**batch.audio)
    assert counts.tolist() == sizes.frames[rows].tolist()
    assert batch.spoken.mask.sum(-1).tolist() == sizes.positions["repetition"][rows].tolist()
    assert len(batch.targets) == sizes.targets["repetition"][rows].sum()


STYLE = {"examples": [["play", "play"], ["stop", "stop it"]], "joint": "{instruction}\n\n{content}", "template": "chat"}


def test_the_very_prompt_is_built_again_and_examples_are_read_once(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    rows = packed.good_rows()
    for row in rows:
        row.written["continuation"] |= {"instruction": "Go on:", "style": STYLE}
        row.written["repetition"] |= {"instruction": "", "style": STYLE | {"template": "none", "joint": "{content}"}}
    packed.pack(rows)
    (model, processor), index = tiny_model, load_index("train", packed.BEHAVIOURS)
    tokenizer = processor.tokenizer
    taught = Prompt.of("Go on:", STYLE)
    assert index.example(0, "continuation").prompt == taught and len(index.different_prompts()) == 2
    prefixes = prompt_prefixes(processor, index.different_prompts())
    assert "stop it<|end|><|user|> Go on:" in tokenizer.decode(max(prefixes, key=len))
    sizes = training_sizes(index, model, processor, prefixes)
    for behaviour in packed.BEHAVIOURS:
        examples = [index.example(row, behaviour) for row in range(3)]
        batch, whole = Collator(processor, prefixes=prefixes)(examples), Collator(processor)(examples)
        assert batch.spoken.mask.sum(-1).tolist() == sizes.positions[behaviour][:3].tolist()
        assert set(batch.prefix.tolist()) != {0}
        text = build_prompt(tokenizer, examples[0].prompt, examples[0].transcript)
        ids = [*tokenizer(text, add_special_tokens=False).input_ids, *examples[0].response_ids]
        assert whole.written.ids[0, : len(ids)].tolist() == ids
    before = index.digest()
    rows[-1].written["continuation"]["style"] = rows[0].written["continuation"]["style"] = STYLE | {
        "joint": "{content}"
    }
    packed.pack(rows)
    assert load_index("train", packed.BEHAVIOURS).digest() != before


def test_the_digest_changes_with_what_was_written(corpus):
    before = load_index("train", ["continuation"]).digest()
    assert load_index("train", ["continuation"]).digest() == before
    assert load_index("train", ["repetition"]).digest() != before


def test_an_unreadable_shard_says_which_and_what_to_do(corpus):
    shard = next(iter_shards("train"))
    index = load_index("train", ["continuation"])
    os.truncate(shard.recording_path, 600)
    with pytest.raises(BlspError, match=rf"{shard.recording_path}: the audio of .* run `blsp corpus` again"):
        index.example(1, "continuation").load_samples()
    shard.recording_path.write_bytes(b"no tar")
    with pytest.raises(BlspError, match="not a readable shard"):
        load_index("train", ["continuation"])


def test_evaluation_batches_hold_what_has_the_behaviour(corpus):
    assert [len(batch) for batch in evaluation_batches("dev", "repetition", 5)] == [5, 3]


def test_a_corpus_without_continuations_says_what_to_run(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    rows = packed.good_rows()
    for row in rows:
        row.written = dict.fromkeys(packed.BEHAVIOURS)
    packed.pack(rows)
    with pytest.raises(BlspError, match="no train row of continuation; run `blsp continuations`"):
        training_sizes(load_index("train", ["continuation"]), *tiny_model)
