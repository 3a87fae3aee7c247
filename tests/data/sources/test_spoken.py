"""Sentences that espeak-ng speaks: the same voice every time, other voices in test, faults dropped by name."""

import json
import subprocess
import sys

import numpy as np
import pytest

from blsp.data.records import Dropped
from blsp.data.sources.spoken import read
from blsp.errors import BlspError
from blsp.miniature.synthesis import TEST_VOICES

SENTENCES = [{"text": f"This is sentence number {word}."} for word in ("one", "two", "three", "four", "five", "six")]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_sentence_has_a_voice_of_its_split(tmp_path):
    rows = [*SENTENCES, *({**row, "split": "test", "answer": "it"} for row in SENTENCES)]
    found = list(read(written(tmp_path / "a.jsonl", rows)))
    assert [row.split for row in found] == ["train"] * 6 + ["test"] * 6
    assert {row.speaker for row in found[6:]} <= set(TEST_VOICES)
    assert not {row.speaker for row in found[:6]} & set(TEST_VOICES)
    assert found[6].answer == "it" and found[0].answer is None
    assert len({row.id for row in found}) == 12
    samples = found[0].audio().samples
    assert samples.dtype == np.float32 and 1.0 < len(samples) / 16_000 < 6.0


def test_voices_do_not_depend_on_where_a_sentence_stands_nor_on_the_process(tmp_path):
    found = list(read(written(tmp_path / "a.jsonl", SENTENCES)))
    turned = list(read(written(tmp_path / "b.jsonl", SENTENCES[::-1])))[::-1]
    assert [(row.id, row.speaker) for row in found] == [(row.id, row.speaker) for row in turned]
    code = (
        "import sys, pathlib, hashlib; from blsp.data.sources.spoken import read\n"
        "print([r.speaker for r in read(pathlib.Path(sys.argv[1]))])"
    )
    again = subprocess.run([sys.executable, "-c", code, tmp_path / "a.jsonl"], capture_output=True, text=True)
    assert again.stdout.strip() == str([row.speaker for row in found]), again.stderr


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("not json", "not_json"),
        ("[]", "missing_key"),
        ('{"answer": "a"}', "missing_key"),
        ('{"text": 5}', "wrong_type"),
        ('{"text": "a", "split": "holiday"}', "unknown_split"),
    ],
)
def test_a_faulty_row_is_dropped_with_its_reason(tmp_path, row, reason):
    (tmp_path / "a.jsonl").write_text(f"{row}\n{json.dumps(SENTENCES[0])}\n")
    dropped, kept = read(tmp_path / "a.jsonl")
    assert isinstance(dropped, Dropped) and dropped.reason == reason and dropped.id == "a.jsonl:1"
    assert kept.text == SENTENCES[0]["text"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BlspError, match="nothing.jsonl"):
        list(read(tmp_path / "nothing.jsonl"))
