"""A toy run that was published, made again in a fresh clone: the same, other, interrupted, its remote in S3."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from flows import command, comparison, machine
from flows.published import Published
from flows.reproduce import main
from tests import toy_run
from tests.faults import dropped, passed, truncated, unanswered
from tests.s3 import BUCKET, internal_error, keys, of_object, slow_down
from tests.toy_run import git
from tests.trained import PARAMS


@pytest.fixture
def run(toy: Path) -> Published:
    return toy_run.publish_here()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "again"


def report(into: Path) -> Any:
    return json.loads((into / "reports/reproduction.json").read_text())


def test_bit_for_bit_on_the_same_machine(run: Published, toy: Path, into: Path, capfd: Any) -> None:
    before = git(toy, "status", "--short"), Path("mlflow.db").exists()
    assert command.main(["reproduce", run.tag, "--into", str(into)]) == 0
    said = capfd.readouterr().out
    assert "here: a machine of the same type" in said
    assert "values in reports/train.json, reports/evaluation.json and 1 digests of data and models are the same" in said
    found = report(into)
    assert found["reproduced"] and found["rerun"] == ["train", "evaluate"] and found["tolerance"] == 0
    assert sorted(found["pulled"]) == ["data/corpus", "models/backbones"]
    assert list(found["digests"]) == ["models/adapter"] and found["compared"] > 20
    # The time that training took, which never is the same, and nothing else.
    noted = {one["what"] for one in found["differences"] if one["file"].endswith(".json")}
    assert noted <= {"train_s"} and not any(one["counts"] for one in found["differences"])
    assert git(into, "rev-parse", "HEAD") == run.commit
    assert (git(toy, "status", "--short"), Path("mlflow.db").exists()) == before
    assert main([run.name, "--into", str(into)]) == 1
    assert "has a finished reproduction; remove it" in capfd.readouterr().err


def test_what_differs_is_named_with_its_distance(
    run: Published, into: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_MACHINE", "0.015")
    assert main([f"runs/{run.name}", "--into", str(into)]) == 1
    said = capfd.readouterr().out
    assert "systems.speech.asr.wer.value" in said and "| 0.06 " in said and "| 0.075 " in said
    differences = {(one["file"], one["what"]): one for one in report(into)["differences"]}
    wer = differences["reports/evaluation.json", "systems.speech.asr.wer.value"]
    assert wer["distance"] == pytest.approx(0.015) and wer["counts"]
    assert differences["models/adapter", "digest"]["counts"]
    assert differences["reports/evaluation.json", "adapter_sha256"]["counts"]
    assert not differences["reports/answers.html", "digest"]["counts"]
    shutil.rmtree(into)
    assert main([run.tag, "--into", str(into), "--tolerance", "0.02"]) == 0
    assert "are within the tolerance of 0.02" in capfd.readouterr().out
    shutil.rmtree(into)
    assert main([run.tag, "--into", str(into), "--tolerance", "0.01"]) == 1
    (worst,) = [one for one in report(into)["differences"] if one["what"] == "systems.speech.asr.wer.value"]
    assert worst["counts"] and not report(into)["reproduced"]


def test_another_type_of_machine_has_a_tolerance(
    run: Published, into: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine.facts()
    monkeypatch.setattr(machine, "facts", lambda: {**here, "torch": "3.0", "memory_gib": 1.0})
    monkeypatch.setenv("TOY_MACHINE", "0.015")
    assert main([run.tag, "--into", str(into)]) == 0
    assert f"torch: published {here['torch']}, here 3.0" in capfd.readouterr().out
    assert list(report(into)["machine_differences"]) == ["torch"]


def test_all_stages_none_or_one_that_is_not_there(run: Published, into: Path, capfd: Any) -> None:
    assert main([run.tag, "--into", str(into), "--rerun", "all"]) == 0
    found = report(into)
    assert found["rerun"] == ["backbones", "corpus", "train", "evaluate"] and found["pulled"] == []
    assert set(found["digests"]) == {"data/corpus", "models/adapter", "models/backbones"}
    shutil.rmtree(into)
    assert main([run.tag, "--into", str(into), "--rerun", "none"]) == 0
    assert (into / "models/adapter/model.safetensors").exists() and (into / "data/corpus").is_dir()
    assert main([run.tag, "--rerun", "test"]) == 1
    assert "the run has the stages backbones, corpus, train, evaluate; or all, or none" in capfd.readouterr().err


def test_what_is_no_published_run_is_refused_with_those_there_are(run: Published, toy: Path, capfd: Any) -> None:
    assert main(["run-2020-01-01-00000000"]) == 1
    said = capfd.readouterr().err
    assert f"published here: {run.tag}" in said and "git fetch --tags" in said
    git(toy, "tag", "run-by-hand")
    assert main(["run-by-hand"]) == 1


def test_interrupted_it_goes_on_and_a_folder_of_others_is_left_alone(run: Published, into: Path, capfd: Any) -> None:
    """Killed while it trains; `train` waits for what another process writes."""
    running = subprocess.Popen(
        [sys.executable, "-m", "flows.reproduce", run.tag, "--into", str(into)],
        env={**os.environ, "PYTHONPATH": str(PARAMS.parent)},
        start_new_session=True,
    )
    until_s = time.monotonic() + 120
    while not (into / "data/corpus").exists():
        assert running.poll() is None and time.monotonic() < until_s
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (into / "reports/reproduction.json").exists()
    assert main([run.tag, "--into", str(into)]) == 0
    assert "going on in" in capfd.readouterr().out
    (into.parent / "other").mkdir()
    assert main([run.tag, "--into", str(into.parent / "other")]) == 1
    assert f"is no clone of {run.tag}; remove it, or name another" in capfd.readouterr().err


def test_a_remote_in_s3_that_throttles_fails_and_breaks_off(
    toy: Path, s3: Any, into: Path, tmp_path: Path, capfd: Any
) -> None:
    config = Path(".dvc/config").read_text().replace(str(tmp_path / "store"), f"s3://{BUCKET}/dvc")
    Path(".dvc/config").write_text(config)
    git(toy, "commit", "--quiet", "--message", "S3", ".dvc/config")
    s3.proxy.aim = of_object
    s3.proxy.faults += [slow_down, dropped, passed, unanswered, internal_error]
    run = toy_run.publish_here()
    assert s3.proxy.faults == []
    largest = max(keys(s3), key=lambda key: s3.head_object(Bucket=BUCKET, Key=key)["ContentLength"])
    whole = s3.get_object(Bucket=BUCKET, Key=largest)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=largest, Body=whole[: len(whole) // 2])
    assert main([run.tag, "--into", str(into), "--rerun", "none"]) == 1
    assert "`dvc pull` from store" in capfd.readouterr().err
    s3.put_object(Bucket=BUCKET, Key=largest, Body=whole)
    s3.proxy.faults += [slow_down, passed, truncated, dropped]
    assert main([run.tag, "--into", str(into)]) == 0
    assert s3.proxy.faults == []


def test_numbers_words_and_what_is_there_once() -> None:
    one = {"loss": 2.0, "bleu": 90.0, "p": 0.5, "train_s": 1.0, "name": "a", "gone": 1, "rows": [1, 2], "same": True}
    other = {**one, "loss": 2.5, "bleu": 91.0, "p": 0.9, "train_s": 2.0, "name": "b", "rows": [1, 3]}
    del other["gone"]
    exact, values = comparison.compare_metrics("m.json", json.dumps(one), json.dumps(other), 0)
    assert values == 9
    assert {d.what: d.counts for d in exact} == {
        **dict.fromkeys(("loss", "bleu", "p", "name", "gone", "rows.1"), True),
        "train_s": False,
    }
    assert {d.what: d.distance for d in exact}["bleu"] == pytest.approx(1 / 90)
    loose, _ = comparison.compare_metrics("m.json", json.dumps(one), json.dumps(other), 0.1)
    assert {d.what for d in loose if d.counts} == {"loss", "gone", "rows.1"}
    assert comparison.table(loose).index("| loss") < comparison.table(loose).index("| bleu")


def test_blsp_as_it_is_typed_has_these_commands_and_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    with (PARAMS.parent / "pyproject.toml").open("rb") as stream:
        assert tomllib.load(stream)["project"]["scripts"]["blsp"] == "flows.command:main"
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = capsys.readouterr().out
    for name in ("continuations", "estimate", *command.COMMANDS):
        assert f"  {name} " in said
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            command.main([name, "--help"])
        assert ended.value.code == 0 and f"usage: blsp {name}" in capsys.readouterr().out
