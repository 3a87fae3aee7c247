"""The `continuations` stage: one row a prompt that fits, in the shards' order, and what was dropped is counted."""

import hashlib

import pytest

from blsp.backbones import load_llm
from blsp.continuation import writer
from blsp.continuation.engine import write_answers
from blsp.data.shards import iter_shards, read_field
from blsp.files import read_json, write_json
from blsp.model.chat import build_prompt
from blsp.params import load_params
from tests.contracts import packed
from tests.trained import PARAMS


@pytest.fixture
def written(pins, tmp_path, monkeypatch):
    """The params of a corpus with one transcript that is too long, after the stage has run."""
    monkeypatch.chdir(tmp_path)
    rows = packed.good_rows()
    rows[2].text = "stop " * 60
    packed.pack(rows)
    write_json("models/backbones/backbones.json", pins)
    params = load_params(PARAMS)
    settings = params.continuations.model_copy(
        update={"batch_size": 3, "max_new_tokens": 5, "max_prompt_tokens": 60, "top_logprobs": 4}
    )
    params = params.model_copy(update={"continuations": settings})
    writer.run(params)
    return params


def test_each_row_is_what_the_llm_writes_from_its_transcript_alone(written):
    model, tokenizer = load_llm()
    for shard in iter_shards("train"):
        for behaviour, instruction in written.continuations.behaviours.items():
            rows = read_field(shard, behaviour)
            assert list(rows) == [cut.id for cut in shard.cuts() if cut.id != "train-2"]
            for id_, row in rows.items():
                prompt = build_prompt(tokenizer, instruction, " " + row["transcript"])
                ((_, alone),) = write_answers(model, tokenizer, [prompt], 1, 5)
                assert row["id"] == id_ and row["instruction"] == instruction
                assert row["prompt_sha256"] == hashlib.sha256(prompt.encode()).hexdigest()
                found = (row["token_ids"], row["text"], row["finish_reason"])
                assert found == (alone.token_ids, alone.text, alone.finish_reason)
                assert [likely[0] for likely in row["top_ids"]] == row["token_ids"], "it wrote what was likeliest"
                assert {len(logprobs) for logprobs in row["top_logprobs"]} == {4}


def test_a_prompt_that_is_too_long_is_dropped_and_counted(written):
    report = read_json("reports/continuations.json")
    assert {(row["id"], row["reason"]) for row in report["dropped_rows"]} == {("train-2", "prompt_too_long")}
    for counts in report["behaviours"].values():
        assert counts["rows"] == 23 and counts["dropped"] == {"prompt_too_long": 1}
