import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from blsp.params import PARAMS_FILE
from flows.promote import main, promote
from tests.trained import PARAMS, Trained

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def params_file(trained: Trained) -> str:
    """params.yaml in the working directory, with this test's own name in the registry."""
    text = PARAMS.read_text(encoding="utf-8")
    assert "model_name: blsp " in text
    name = trained.params.promote.model_name
    Path(PARAMS_FILE).write_text(text.replace("model_name: blsp ", f"model_name: {name} "), encoding="utf-8")
    return name


async def last_artifact() -> str:
    async with get_client() as client:
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["promotion"]))
        )
    return str(max((artifact.created, artifact.data) for artifact in artifacts if artifact.created)[1])


def test_it_promotes_then_says_so_then_refuses_a_worse_one(trained: Trained, params_file: str) -> None:
    state = promote(return_state=True)
    assert state.is_completed()
    assert state.message == f"{params_file} version 1 is champion now"
    assert main([]) == 0  # again

    trained.write_training(steps=25, weights="worse")
    trained.write_evaluation(wer=0.5)
    state = promote(return_state=True)
    assert state.is_failed() and state.message
    assert "speech.asr.wer is 0.5, but must be at most 0.15 (cascade (0.07) + 0.08): 0.35 too high" in state.message
    shown = asyncio.run(last_artifact())
    assert state.message in shown
    assert shown.count("FAILS") == 2
    assert main([]) == 1


def test_what_cannot_be_judged_fails_with_one_message(trained: Trained, params_file: str) -> None:
    Path("reports/evaluation.json").unlink()
    state = promote(return_state=True)
    assert state.is_failed()
    assert state.message == "reports/evaluation.json: not there; run `dvc repro evaluate`"


def test_help_teaches_without_starting_anything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.promote", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PARAMS.parent,
    )
    for word in ("champion", "challenger", "promote.gates", "MLFLOW_TRACKING_URI", "mlflow models serve"):
        assert word in done.stdout
