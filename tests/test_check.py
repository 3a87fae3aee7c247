"""`blsp check`: each thing that would stop a run, or spoil it, is said in a line before anything is computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ruamel.yaml import YAML

from blsp import check
from blsp.cli import main
from blsp.errors import BlspError
from blsp.params import load_params
from tests.trained import PARAMS

RATE_HZ = 16_000
SPLITS = ("train", "dev", "test")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes and checks a corpus of two rows a split, changed by `change`, with these values of params.yaml."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        samples = 0.1 * np.random.default_rng(number).standard_normal(RATE_HZ)
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE_HZ)

    def findings(change=lambda row: row, backbones=("local", str(tmp_path)), source=None, **sections):
        rows = [
            change({"audio": f"{number}.wav", "text": f"the ostrich eats apple {number}", "split": SPLITS[number % 3]})
            for number in range(6)
        ]
        Path("m.jsonl").write_text("\n".join(map(json.dumps, rows)))
        raw = YAML(typ="safe", pure=True).load(PARAMS.read_text())
        raw["corpus"]["sources"] = [{"name": "manifest", "path": "m.jsonl"} | (source or {})]
        raw["backbones"] |= {"source": backbones[0], "speech_name": backbones[1], "llm_name": backbones[1]}
        for name, values in sections.items():
            raw[name] |= values
        Path("params.yaml").write_text(json.dumps(raw))
        return check.check(load_params("params.yaml"))

    return findings


def test_a_minimal_manifest_is_told_what_it_lacks_and_may_run(mine, capsys):
    found = mine()
    assert found.errors == []
    assert found.facts == ["m.jsonl: 6 rows; languages: unknown 6", "splits: train 2, dev 2, test 2"]
    said = "\n".join(found.warnings)
    assert "m.jsonl: 6 rows name no licence, which is recorded as unknown" in said
    assert "m.jsonl: 6 rows name no language" in said
    assert "the tasks for de and en ask the same rows: set `language`" in said
    assert "evaluate.tasks.st is left out: no test row has `translation`" in said
    assert "promote.gates.speech.st.bleu: st is left out, so promotion will be refused" in said
    assert main(["check"]) == 0
    assert "warning: m.jsonl: 6 rows name no licence" in capsys.readouterr().out


def test_language_and_licence_may_be_said_of_the_source(mine):
    found = mine(source={"language": "en-GB", "licence": "CC0-1.0"})
    assert found.facts[0] == "m.jsonl: 6 rows; languages: en-GB 6"
    said = "\n".join(found.warnings)
    assert "licence" not in said and "name no language" not in said
    assert "evaluate.tasks.asr_de is left out: no test row is in language de, but en 2" in said
    assert "evaluate.tasks.asr is" not in said


def test_an_unknown_key_is_named_once(mine):
    found = mine(lambda row: row | {"speeker": "ann"})
    assert [line for line in found.warnings if "speeker" in line] == [
        "m.jsonl: key 'speeker' in 6 rows is ignored; the nearest known key is 'speaker'"
    ]


def test_the_miniatures_llm_is_refused_where_it_does_not_know_the_words(mine, capsys):
    (error,) = mine(backbones=("miniature", None)).errors
    assert error.startswith("backbones.source: the miniature's LLM knows ") and "set backbones" in error
    assert main(["check"]) == 1
    assert "1 thing to mend before a run:\n  backbones.source" in capsys.readouterr().err
    assert mine(lambda row: row | {"text": "turn on the fan"}, backbones=("miniature", None)).errors != [error]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda row: row | {"split": "train"}, "no row is left for test: name `split` in the rows"),
        (lambda row: row | {"speaker": "ann"}, "1 speakers are in more than one split, such as 'ann'"),
        (lambda row: row | {"audio": "x" + row["audio"]}, "6 audio files looked for 6 are not there, such as "),
        (
            lambda row: row | {"audio": "m.jsonl", "id": row["audio"]},
            ".jsonl: none of 3 that were tried can be decoded",
        ),
        (lambda row: row | {"text": "the same for all"}, "4 of 6 rows are dropped before their audio is read"),
        (lambda row: {"audio": row["audio"]}, "m.jsonl: no row can be used, missing_key: line 1: text is missing"),
        (lambda row: row | {"split": "other"}, "unknown split 'other'"),
    ],
)
def test_what_would_stop_the_run_is_an_error(mine, change, error):
    found = mine(change)
    assert any(error in line for line in found.errors), found
    with pytest.raises(BlspError, match="to mend before a run"):
        found.refuse_errors()


def test_some_files_missing_or_of_a_strange_kind_are_a_warning(mine, tmp_path):
    (tmp_path / "5.webm").write_bytes(b"no webm")
    found = mine(lambda row: row | ({"audio": "5.webm"} if row["audio"] == "5.wav" else {}))
    assert found.errors == []
    assert any(".webm: none of 1 that were tried can be decoded" in line for line in found.warnings)
    (tmp_path / "4.wav").unlink()
    assert any("of 6 audio files looked for 1 are not there" in line for line in mine().warnings)


def test_models_that_are_not_there_and_tasks_that_are_all_empty(mine):
    found = mine(backbones=("local", "nowhere/llm"))
    assert [line.partition(";")[0] for line in found.errors] == [
        "backbones.speech_name: nowhere/llm: no such file or folder",
        "backbones.llm_name: nowhere/llm: no such file or folder",
    ]
    task = {"instructions": ["Say."], "reference": "transcript", "metric": "wer", "drop": None, "source": "other"}
    found = mine(evaluate={"tasks": {"asr": task | {"language": None}}}, promote={"tolerated_falls": {}})
    assert "no task of evaluate.tasks has a test item" in found.errors[0]
    assert any("(sources: m.jsonl 2)" in line for line in found.warnings)


def test_of_a_large_source_the_beginning_is_read_and_that_is_said(mine, monkeypatch):
    monkeypatch.setattr(check, "ROWS", 2)
    found = mine()
    assert found.facts[0].startswith("m.jsonl: the first 2 rows")
    assert found.errors == [], "test may come later"
    assert any("no row is among the rows that were read for test" in line for line in found.warnings)


def test_nothing_is_wrong_with_the_miniature():
    found = check.check(load_params(PARAMS))
    assert found.errors == found.warnings == []
    assert found.facts[-1] == "splits: train 4,000, dev 200, test 600"
