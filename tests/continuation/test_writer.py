"""The `continuations` stage: a row for each prompt that fits and each answer that holds, nothing asked twice."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from blsp.backbones import load_llm
from blsp.continuation import answers, engine, sheets, writer
from blsp.continuation.engine import write_answers
from blsp.data.drops import read_drops
from blsp.data.records import SPLITS
from blsp.data.shards import iter_shards, read_field
from blsp.errors import BlspError
from blsp.files import read_json, write_json
from blsp.model.chat import build_prompt
from blsp.staging import FolderStaging
from tests.continuation.asking import ANY, asking
from tests.contracts import packed

REPO = Path(__file__).parents[2]
SHARDS = 6  # of packed.good_rows(): two a split
SHORT = {"max_new_tokens": 5, "max_prompt_tokens": 60}


@pytest.fixture
def corpus(pins, tmp_path, monkeypatch):
    """A corpus of 24 rows in six shards, one transcript too long; and a scratch folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLSP_SCRATCH", str(tmp_path / "scratch"))
    answers._llm.cache_clear()
    rows = packed.good_rows()
    rows[2].text = "stop " * 60
    packed.pack(rows)
    write_json("models/backbones/backbones.json", pins)
    return rows


@pytest.fixture
def asked(monkeypatch):
    """The prompts that the LLM is given, a list for each shard and behaviour."""
    seen = []
    write = engine.write_answers

    def noted(llm, tokenizer, prompts, *rest):
        seen.append(list(prompts))
        return write(llm, tokenizer, prompts, *rest)

    monkeypatch.setattr(engine, "write_answers", noted)
    return seen


def rows_of(behaviour):
    """All the rows of a behaviour's field, by cut id."""
    return {
        id_: row
        for split in SPLITS
        for shard in iter_shards(split)
        for id_, row in read_field(shard, behaviour).items()
    }


def contents(folder):
    """The files below a folder, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_each_row_is_what_the_llm_writes_from_its_transcript_alone(corpus):
    params = asking(**SHORT, top_logprobs=4)
    writer.run(params)
    model, tokenizer = load_llm()
    for behaviour, settings in params.continuations.behaviours.items():
        rows = rows_of(behaviour)
        assert set(rows) == {row.id for row in corpus} - {"train-2"}
        for id_, row in list(rows.items())[::4]:
            assert row["id"] == id_ and row["instruction"] == settings.instructions[0]
            prompt = build_prompt(tokenizer, row["instruction"], " " + row["transcript"])
            ((_, alone),) = write_answers(model, tokenizer, [prompt], 1, 5)
            assert row["prompt_sha256"] == hashlib.sha256(prompt.encode()).hexdigest()
            found = (row["token_ids"], row["text"], row["finish_reason"])
            assert found == (alone.token_ids, alone.text, alone.finish_reason)
            assert [likely[0] for likely in row["kept_ids"]] == row["token_ids"], "it wrote what was likeliest"
            assert {len(logprobs) for logprobs in row["kept_logprobs"]} == {4 + 4}


def test_what_is_left_out_is_counted_and_listed(corpus):
    committed = {"quality": {"copy_distance": 0.1, "max_repeated_tokens": 8, "language_confidence": 0.8}}
    wanted = {"instructions": ["Repeat the following text."], "share": 1.0, "answer": "copy", "language": None}
    writer.run(asking(**SHORT, **committed, behaviours={"repetition": wanted}))
    counts = read_json("reports/continuations.json")["behaviours"]["repetition"]
    listed = list(read_drops("data/continuations/dropped.jsonl.gz"))
    assert counts["dropped"] == {"prompt_too_long": 1, "not_a_copy": 23}, "a random LLM does not repeat"
    assert Counter(row["reason"] for row in listed) == counts["dropped"]
    assert {row["id"] for row in listed} == {row.id for row in corpus} and counts["rows"] == 0
    assert {"id": "train-2", "behaviour": "repetition", "reason": "prompt_too_long"}.items() <= listed[0].items()
    assert rows_of("repetition") == {}
    page = Path("reports/continuations.html").read_text()
    assert "not_a_copy" in page and "prompt_too_long" in page


def test_a_behaviour_is_written_for_its_share_in_several_phrasings(corpus):
    phrasings = [f"Say it again, in way {number}." for number in range(3)]
    behaviours = {
        "all": {"instructions": phrasings[:1], **ANY},
        "half": {"instructions": phrasings, **ANY, "share": 0.5},
    }
    writer.run(asking(max_new_tokens=2, behaviours=behaviours))
    counts = read_json("reports/continuations.json")["behaviours"]
    half = rows_of("half")
    asked = len(half) + sum(counts["half"]["dropped"].values())  # a random LLM may answer nothing
    assert 6 <= len(half) == counts["half"]["rows"] and asked == 24 - counts["half"]["rows_not_asked"] <= 18
    assert counts["all"]["rows_not_asked"] == 0
    assert {row["instruction"] for row in half.values()} == set(phrasings)


def test_draws_follow_the_share_and_a_new_phrasing_moves_few():
    behaviour = asking().continuations.behaviours["continuation"]
    ids = [f"row-{number}" for number in range(4000)]

    def drawn(share):
        wanted = behaviour.model_copy(update={"share": share})
        return {id_ for id_ in ids if sheets.is_asked(id_, "continuation", wanted)}

    assert len(drawn(0.2)) / 4000 == pytest.approx(0.2, abs=0.03)
    assert drawn(0.2) < drawn(0.6) and len(drawn(1.0)) == 4000
    two = {id_: sheets.instruction_for(id_, ["a", "b"]) for id_ in ids}
    three = {id_: sheets.instruction_for(id_, ["c", "b", "a"]) for id_ in ids}
    assert Counter(two.values())["a"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert {three[id_] for id_ in ids if three[id_] != two[id_]} == {"c"}


def test_what_was_answered_is_not_asked_again(corpus, asked):
    writer.run(asking(**SHORT))
    assert len(asked) == 2 * SHARDS
    whole = contents("data/continuations")
    shutil.rmtree("data/continuations")
    writer.run(asking(**SHORT))
    assert len(asked) == 2 * SHARDS and contents("data/continuations") == whole


def behaviours_with(instruction):
    return {
        "continuation": {"instructions": ["Continue the following text."], **ANY},
        "repetition": {"instructions": [instruction], **ANY},
    }


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"quality": {"copy_distance": 0.5, "max_repeated_tokens": 3, "language_confidence": 0.9}}, 0),
        ({"behaviours": behaviours_with("Say it again.")}, SHARDS),
        ({"max_new_tokens": 4}, 2 * SHARDS),
        ({"top_logprobs": 2}, 2 * SHARDS),
    ],
)
def test_what_changes_the_answers_is_asked_again_and_nothing_else(corpus, asked, changes, stale):
    writer.run(asking(**SHORT))
    asked.clear()
    writer.run(asking(**SHORT | changes))
    assert len(asked) == stale


def test_a_changed_transcript_llm_or_template_makes_its_shards_stale(corpus, pins, asked, tmp_path):
    writer.run(asking(**SHORT))
    asked.clear()
    corpus[5].text = "train turns the big curtain"
    packed.pack(corpus)
    writer.run(asking(**SHORT))
    assert len(asked) == 2, "one shard, two behaviours"
    asked.clear()
    llm = tmp_path / "llm"
    shutil.copytree(pins["llm"]["name"], llm)
    template = llm / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    write_json(
        "models/backbones/backbones.json", {**pins, "llm": {**pins["llm"], "name": str(llm), "sha256": "1" * 64}}
    )
    writer.run(asking(**SHORT))
    assert len(asked) == 2 * SHARDS


KILLED = """
import os
from blsp.continuation import answers, writer
from blsp.params import load_params
written, write = 0, answers.write_jsonl_gz
def write_or_die(path, rows):
    global written
    if written == 5:
        path.write_bytes(b"half")
        os.kill(os.getpid(), 9)
    written += 1
    write(path, rows)
answers.write_jsonl_gz = write_or_die
writer.run(load_params("params.yaml"))
"""


def test_a_killed_run_keeps_its_finished_shards(corpus, asked):
    params = asking(**SHORT)
    writer.run(params)
    whole, report = contents("data/continuations"), Path("reports/continuations.json").read_bytes()
    for folder in ("data/continuations", "reports", "scratch"):
        shutil.rmtree(folder)
    YAML().dump(params.model_dump(by_alias=True), Path("params.yaml"))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": str(REPO)}, timeout=120, check=False
    )
    assert killed.returncode == -9
    assert not Path("data/continuations").exists() and not Path("reports/continuations.json").exists()
    asked.clear()
    writer.run(params)
    assert len(asked) == 2 * SHARDS - 5
    assert contents("data/continuations") == whole
    assert Path("reports/continuations.json").read_bytes() == report


def test_several_processes_write_the_same(corpus):
    writer.run(asking(**SHORT))
    whole = contents("data/continuations")
    shutil.rmtree("scratch")
    params = asking(**SHORT)
    writer.run(params.model_copy(update={"execution": params.execution.model_copy(update={"processes": 2})}))
    assert contents("data/continuations") == whole


def test_answers_nobody_asked_for_in_a_month_are_forgotten(corpus):
    writer.run(asking(**SHORT))
    folder = Path("scratch/answers")
    old = sorted(folder.iterdir())[0]
    os.utime(old, (0, 0))
    (folder / ".work.killed").mkdir()
    os.utime(folder / ".work.killed", (0, 0))
    FolderStaging(folder).forget()
    assert not old.exists() and len(list(folder.iterdir())) == 2 * SHARDS - 1


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_answers_that_are_not_whole_are_asked_for_again(corpus, asked, monkeypatch, spoil):
    writer.run(asking(**SHORT))
    whole = contents("data/continuations")
    read = writer.read_answers

    def spoilt(name, staging):
        monkeypatch.setattr(writer, "read_answers", read)
        spoil(staging.folder / name)
        return read(name, staging)

    monkeypatch.setattr(writer, "read_answers", spoilt)
    with pytest.raises(BlspError, match="are not there whole .*; run it again"):
        writer.run(asking(**SHORT))
    asked.clear()
    writer.run(asking(**SHORT))
    assert len(asked) == 1 and contents("data/continuations") == whole
