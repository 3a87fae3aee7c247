"""A registered version of a toy run traced back through real MLflow, git and dvc.lock, whole and tampered with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blsp import tracking
from blsp.errors import BlspError
from blsp.params import load_params
from blsp.tracking.store import MODEL_TAG, session
from flows.audit import main
from flows.published import PUBLISHED_TAG
from flows.registered import registered
from flows.reproduce import resolve
from tests import toy_run
from tests.toy_run import git
from tests.trained import PARAMS

OTHER = "f" * 40


@pytest.fixture
def run_id(toy: Path, empty_mlflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The toy's run, recorded in a store of its own and registered as version 1 of `blsp`, the champion."""
    shutil.copy(empty_mlflow_db, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("BLSP_TRACKING")
    params = load_params(PARAMS)
    params = params.model_copy(update={"train": params.train.model_copy(update={"lr": 0.1})})  # as the toy's
    run_id = tracking.sync(params)
    assert run_id
    with session() as opened:
        client, tags = opened.client, opened.client.get_run(run_id).data.tags
        client.create_registered_model("blsp")
        origin = {key: value for key, value in tags.items() if key.startswith("blsp.")}
        model_id = tags[MODEL_TAG]
        client.create_model_version("blsp", f"models:/{model_id}", run_id, origin, model_id=model_id)
        client.set_registered_model_alias("blsp", "champion", "1")
    return run_id


Checks = dict[str, tuple[str, str]]


def audit(
    capsys: pytest.CaptureFixture[str], status: int, model: str = "models:/blsp@champion"
) -> tuple[dict[str, Any], Checks]:
    """The facts, and {what was checked: (outcome, why)}, after the command ended with this status."""
    capsys.readouterr()
    assert main([model, "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    return found, {one["what"]: (one["outcome"], one["why"]) for one in found["checks"]}


def test_a_champion_is_traced_to_all_it_was_made_of(toy: Path, run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, checks = audit(capsys, 0)
    assert found["run"] == run_id and found["published"] is None
    assert checks["publication"][0] == "unknown" and "`blsp publish`" in checks["publication"][1]
    assert checks["data"] == ("unknown", "the run names no data, or its commit has no dvc.lock")
    with pytest.raises(BlspError, match="was never published"):
        resolve("models:/blsp@champion")

    run = toy_run.publish_here()
    found, checks = audit(capsys, 0, "models:/blsp/1")
    assert [one for one in checks.items() if one[1][0] != "ok"] == [] and len(checks) == 9
    assert found["published"] == run.tag and found["commit"] == git(toy, "rev-parse", "HEAD")
    assert found["backbones"]["llm"]["sha256"] == "0" * 64 and found["figures"]["speech.asr.wer"] == pytest.approx(0.06)
    assert resolve("models:/blsp@champion").commit == run.commit
    assert run.record["run"]["run_id"] == run_id

    assert main(["models:/blsp@champion"]) == 0
    said = capsys.readouterr().out
    for fact in (
        run_id,
        run.tag,
        "sha256 " + run.record["adapter_sha256"],
        "blsp version 1 (champion)",
        "train.lr 0.1",
    ):
        assert fact in said


def test_what_was_tampered_with_or_lost_fails(
    toy: Path, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy_run.publish_here()
    with session() as opened:
        opened.client.log_metric(run_id, "speech.asr.wer", 0.01)
        opened.client.set_tag(run_id, "blsp.backbone.llm.sha256", "1" * 64)
        opened.client.set_model_version_tag("blsp", "1", "blsp.backbone.llm.sha256", "1" * 64)
    (served,) = Path("mlruns").rglob("artifacts/adapter/model.safetensors")
    served.write_text("other weights")
    _, checks = audit(capsys, 1)
    failed = {what: why for what, (outcome, why) in checks.items() if outcome == "failed"}
    assert set(failed) == {"logged adapter", "backbones", "figures"}
    assert "was trained and judged" in failed["logged adapter"]
    assert f"llm.sha256 is {'1' * 64}, there {'0' * 64}" in failed["backbones"]
    assert "speech.asr.wer is 0.01, there 0.06" in failed["figures"]

    with session() as opened:
        opened.client.set_tag(run_id, "mlflow.source.git.commit", OTHER)
    git(toy, "tag", "--delete", run.tag)
    shutil.rmtree(served.parent)
    _, checks = audit(capsys, 1)
    assert checks["commit"] == ("failed", f"{OTHER} is not in this repository; `git fetch --all` may bring it")
    assert checks["publication"][0] == "failed" and "git fetch --tags" in checks["publication"][1]
    assert checks["logged adapter"][0] == "unknown"


def test_changes_that_no_commit_had_are_bad_until_the_run_is_published(
    toy: Path, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with session() as opened:
        opened.client.set_tag(run_id, "blsp.git_dirty", "true")
        opened.client.set_model_version_tag("blsp", "1", "blsp.git_dirty", "true")
    assert audit(capsys, 1)[1]["commit"][0] == "failed"
    toy_run.publish_here()
    assert audit(capsys, 0)[1]["commit"][0] == "ok"


def test_models_that_are_not_there_are_refused_with_those_that_are(
    run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for uri, said in {
        "models:/blsp@best": "has no alias best; it has versions 1, aliases champion (version 1)",
        "models:/blsp/7": "has no version 7; it has versions 1",
        "models:/other/1": "no model other is registered in MLflow; registered are: blsp",
        "blsp": "write models:/blsp/3 or models:/blsp@champion",
    }.items():
        assert main([uri]) == 1
        assert said in capsys.readouterr().err
    assert registered("models:/blsp/1").tag(PUBLISHED_TAG) is None


def test_away_from_the_repository_what_cannot_be_seen_is_unknown(
    run_id: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_run.publish_here()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, checks = audit(capsys, 0)
    assert checks["repository"][0] == "unknown" and checks["logged adapter"][0] == "ok"
