import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL

from blsp.params import PARAMS_FILE
from blsp.registry.aliases import held
from blsp.registry.lock import under_way
from blsp.tracking.store import session
from flows.promote import main, promote, roll_back
from tests.trained import PARAMS, Trained

# A promotion that lingers once the challenger has moved and the champion has not.
MIDWAY = """
import sys, time
from pathlib import Path
import mlflow
from blsp.registry import promotion
from tests.trained import Answering
promotion.prepare = lambda params: Answering()
real = mlflow.MlflowClient.set_registered_model_alias
def lingering(client, name, alias, version):
    real(client, name, alias, version)
    if alias == "challenger" and not Path("midway").exists():
        Path("midway").touch()
        time.sleep(120)
mlflow.MlflowClient.set_registered_model_alias = lingering
from flows.promote import main
sys.exit(main([]))
"""

pytestmark = pytest.mark.usefixtures("prefect_server", "unasked")


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
    assert "speech.asr.wer is 0.5, but must be at most 0.1 (cascade (0.07) + 0.03): 0.4 too high" in state.message
    shown = asyncio.run(last_artifact())
    assert state.message in shown
    assert shown.count("FAILS") == 2
    assert main([]) == 1


def test_it_rolls_back_shows_and_refuses(
    trained: Trained, params_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--roll-back"]) == 1
    assert main([]) == 0
    trained.write_training(steps=25, weights="better")
    trained.write_evaluation()
    assert main([]) == 0
    state = roll_back(return_state=True)
    assert state.message == f"{params_file} version 1 is champion again, version 2 no longer"
    assert main(["--roll-back", "2"]) == 0
    capsys.readouterr()
    assert main(["--show"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("champion:   version 2, adapter ")
    assert shown.count("| promoted ") == 2 and shown.count("| rolled back ") == 2
    with pytest.raises(SystemExit):
        main(["--roll-back", "champion"])
    assert "must be a version's number, from 1 on; found champion" in capsys.readouterr().err


def test_a_promotion_that_is_told_to_end_midway_puts_the_aliases_back(
    trained: Trained, params_file: str, tmp_path: Path
) -> None:
    assert main([]) == 0
    trained.write_training(steps=25, weights="better")
    trained.write_evaluation()
    environment = {**os.environ, "PYTHONPATH": str(PARAMS.parent), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    process = subprocess.Popen(
        [sys.executable, "-c", MIDWAY], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline_s = time.monotonic() + 180
    while not (tmp_path / "midway").exists():
        assert process.poll() is None and time.monotonic() < deadline_s, process.communicate()[0]
        time.sleep(0.1)
    with session() as store:
        assert held(store, params_file) == {"challenger": "2", "champion": "1"}
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
        assert process.returncode not in (0, 1), said
        assert held(store, params_file) == {"challenger": "1", "champion": "1"}
        assert under_way(store, params_file) == []


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
    for word in (
        "champion",
        "challenger",
        "promote.gates",
        "--roll-back",
        "--show",
        "docs/registry.md",
        "MLFLOW_TRACKING_URI",
        "mlflow models serve",
    ):
        assert word in done.stdout
