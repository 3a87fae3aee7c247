"""Promotions through a real MLflow server, which is killed between the registration and the aliases, and comes back."""

import contextlib
import shutil
from pathlib import Path

import pytest

from blsp.errors import BlspError
from blsp.registry import lock, promote, roll_back
from blsp.registry.aliases import held
from blsp.registry.card import FILE
from blsp.registry.lock import under_way
from blsp.tracking.store import session
from tests.test_tracking_away import free_port, server
from tests.trained import Answering, Trained


class Killing:
    """In the smoke test's place: MLflow's server dies, and the model answers well."""

    def __init__(self, running: contextlib.ExitStack) -> None:
        self._running = running

    def fault(self, model_uri: str) -> None:
        self._running.close()


def test_a_server_that_dies_before_the_aliases_move_leaves_them_as_they_were(
    trained: Trained, empty_mlflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port, name = tmp_path / "server", free_port(), trained.params.promote.model_name
    folder.mkdir()
    shutil.copy(empty_mlflow_db, folder / "server.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    running = contextlib.ExitStack()
    running.enter_context(server(folder, port))
    with running:
        monkeypatch.setattr("blsp.registry.promotion.prepare", lambda params: Answering())
        assert promote(trained.params).outcome == "promoted"
        with session() as store:
            assert FILE in {
                item.path for item in store.client.list_artifacts(store.client.get_model_version(name, 1).run_id)
            }
        trained.write_training(steps=25, weights="next")
        trained.write_evaluation()
        monkeypatch.setattr("blsp.registry.promotion.prepare", lambda params: Killing(running))
        with pytest.raises(BlspError, match=rf"MLflow at http://127\.0\.0\.1:{port} failed"):
            promote(trained.params)
    monkeypatch.setattr("blsp.registry.promotion.prepare", lambda params: Answering())
    with server(folder, port), session() as store:
        assert held(store, name) == {"champion": "1", "challenger": "1"}
        with pytest.raises(lock.Busy, match="promotion of adapter"):
            promote(trained.params)
        monkeypatch.setattr(lock, "LEASE_S", 0.0)
        promotion = promote(trained.params)
        assert (promotion.outcome, promotion.version) == ("promoted", 2)
        assert roll_back(trained.params).version == 1
        assert held(store, name) == {"champion": "1", "challenger": "2"}
        assert under_way(store, name) == []
