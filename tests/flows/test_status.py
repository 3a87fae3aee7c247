"""`blsp status`: what is stale and why, who works here, what there is to see; what is away hides nothing else."""

import json
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import command, status
from flows.workspace import held
from tests.toy_run import write_params
from tests.trained import PARAMS


@flow(name="greet")
def greet() -> str:
    return "hello"


def section(text: str, title: str) -> str:
    return text.partition(f"\n{title}\n")[2].partition("\n\n")[0]


def test_what_is_stale_is_named_with_the_reason(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status"]) == 0
    text = capsys.readouterr().out
    assert section(text, "stages").count("up to date") == 4 and "nothing is running here" in text
    assert "speech" in section(text, "figures") and "asr (wer)" in section(text, "figures")
    assert "reports/answers.html: " in section(text, "figures")
    assert section(text, "registry").strip() == "BLSP_TRACKING=off"
    write_params(toy, "one", lr=0.2)
    stages = section(status.status(), "stages").splitlines()
    found = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in stages if line.count("|") == 3}
    assert found["corpus"] == found["backbones"] == "up to date"
    assert found["train"].startswith("stale: its code, values") and found["evaluate"] == "stale: comes after train"


def test_who_works_here_is_named_while_it_works(toy: Path) -> None:
    with held(toy, "pipeline run tame-otter"):
        assert "pipeline run tame-otter (process " in str(status.holder())
    assert status.holder() is None


@pytest.mark.usefixtures("toy", "prefect_server")
def test_the_last_runs_are_those_of_the_server() -> None:
    greet()
    runs = section(status.status(), "runs")
    assert [line for line in runs.splitlines() if "greet" in line and "Completed" in line], runs
    assert runs.splitlines()[-1].startswith("  to see them: http://") and runs.endswith("/runs")


def test_the_figures_stand_in_the_order_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    speech = {
        task: {"wer": {"value": 0.1, "low": 0.0, "high": 0.2}} for task in ("asr", "asr_de", "instructions", "st")
    }
    tasks = [{"name": name} for name in ("asr", "st", "asr_de")]
    status.EVALUATION.parent.mkdir()
    status.EVALUATION.write_text(json.dumps({"systems": {"speech": speech}, "tasks": tasks}))
    rows = [line.split("|")[1].split()[0] for line in status.figures().splitlines()[2:]]
    assert rows == ["asr", "st", "asr_de", "instructions"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (
            "https://some:secret@mlflow.example",  # pragma: allowlist secret
            "to see it: https://mlflow.example/#/models/blsp?workflowType=machine_learning",
        ),
        (
            "postgresql://some:secret@db.example/mlflow",  # pragma: allowlist secret
            'to see it: mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"',
        ),
        ("", "to see it: mlflow ui --backend-store-uri sqlite:///mlflow.db"),
    ],
)
def test_where_the_registry_is_to_be_seen(monkeypatch: pytest.MonkeyPatch, address: str, told: str) -> None:
    monkeypatch.setattr("blsp.registry.overview", lambda params: "champion: none")
    monkeypatch.setattr(status, "PARAMS_FILE", str(PARAMS))
    monkeypatch.setenv("BLSP_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert status._registry() == f"champion: none\n{told}"


@pytest.mark.usefixtures("toy")
def test_a_server_that_is_away_is_said_and_hides_nothing() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        text = status.status()
    assert "cannot be asked" in section(text, "runs") and section(text, "stages").count("up to date") == 4


def test_a_folder_without_a_pipeline_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status.main([]) == 1
    assert "has no dvc.yaml" in capsys.readouterr().err
