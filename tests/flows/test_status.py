"""`blsp status`: what is stale and why, who works here, what there is to see; what is away hides nothing else."""

from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import command, status
from flows.workspace import held
from tests.toy_run import write_params


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
