"""A real tracking server on loopback that dies in the middle of a training and comes back afterwards."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blsp import tracking
from blsp.errors import BlspError
from blsp.tracking import local
from blsp.tracking.store import KEY_TAG, Store, session
from blsp.training.places import PIPELINE
from tests.servers import free_port
from tests.trained import Trained


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """`mlflow server` on `folder`'s database, killed without warning at the end."""
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI")
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline_s = time.monotonic() + 120
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline_s, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log(tracker: tracking.Tracker, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        tracker.log(row["step"], {k: v for k, v in row.items() if k != "step"})


def await_first_point(store: Store, training_key: str) -> None:
    deadline_s = time.monotonic() + 60
    while not any(run.data.metrics for run in store.runs_with(KEY_TAG, training_key)):
        assert time.monotonic() < deadline_s, "nothing was mirrored while training ran"
        time.sleep(0.3)


def test_training_goes_on_without_the_server_and_all_is_replayed_later(
    trained: Trained,
    empty_mlflow_db: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    shutil.copy(empty_mlflow_db, folder / "server.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    rows = trained.rows(25)
    with server(folder, port), session() as store:
        tracker = tracking.open_tracker(trained.params)
        log(tracker, rows[:10])
        await_first_point(store, local.training_key(trained.params))
        (begun,) = store.runs_with(KEY_TAG, local.training_key(trained.params))
    started_s = time.monotonic()
    log(tracker, rows[10:])
    assert time.monotonic() - started_s < 0.5
    tracker.close()
    said = capfd.readouterr().err
    assert said.count("failed: ") == 1
    assert "blsp track" in said
    assert "Retrying" not in said

    started_s = time.monotonic()
    with pytest.raises(BlspError, match=rf"MLflow at http://127\.0\.0\.1:{port} failed"):
        tracking.sync(trained.params)
    assert time.monotonic() - started_s < 30

    with server(folder, port), session() as store:
        run_id = tracking.sync(trained.params)
        assert run_id == begun.info.run_id  # the run that was begun, not another one
        run = store.client.get_run(str(run_id))
        assert run.info.status == "FINISHED"
        for key, points in local.read_curve(Path(PIPELINE.log)).items():
            history = store.client.get_metric_history(str(run_id), key)
            assert sorted((point.step, point.value) for point in history) == sorted(points.items())
        assert {item.path for item in store.client.list_artifacts(str(run_id))} >= {
            "evaluation.json",
            "figures",
        }
