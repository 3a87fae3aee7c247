"""What tests share: real services, started once."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flows  # noqa: F401  its settings come before Prefect's import
from blsp.params import load_params
from tests import tiny
from tests.s3 import s3, s3_proxy  # noqa: F401  fixtures
from tests.toy_run import toy, toy_built  # noqa: F401  fixtures
from tests.trained import PARAMS, Answering, Trained


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small lose time with more threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Checkpoints and cached frames, of stages in processes of their own too, leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BLSP_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        yield


@pytest.fixture(scope="session")
def pins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Tiny random backbones on disk, as backbones.json pins them."""
    return tiny.save_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session")
def tiny_model(pins: dict[str, dict[str, Any]]) -> Any:
    """A model with a random adapter between the tiny backbones, and its processor."""
    return tiny.build(pins)


@pytest.fixture(scope="session")
def clips() -> list[np.ndarray]:
    """Noise of 0.35 s, 1.1 s and 5.3 s: the last is longer than two windows."""
    rng = np.random.default_rng(1)
    return [rng.normal(0, 0.1, int(seconds * tiny.SECOND)).astype(np.float32) for seconds in (0.35, 1.1, 5.3)]


@pytest.fixture(scope="session")
def empty_mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and nothing in them. Making one takes 10 s: copy it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mlflow_store(empty_mlflow_db: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a store that tests share: they tell their runs apart by what `trained` wrote for them."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(empty_mlflow_db, path)
    return f"sqlite:///{path}"


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_store: str) -> Trained:
    """A working directory as `dvc repro` leaves it, with MLflow at `mlflow_store`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.delenv("BLSP_TRACKING", raising=False)
    here = Trained(load_params(PARAMS))
    here.write_data()
    here.write_training(steps=25)
    here.write_evaluation()
    return here


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promotions without the smoke test, which loads a model in a process of its own: tests/registry/test_smoke.py."""
    monkeypatch.setattr("blsp.registry.promotion.prepare", lambda params: Answering())


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server for the whole session, its runs in a temporary database. Starting one takes 10 s."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
