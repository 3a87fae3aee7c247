"""Every alias moves or none does, wherever a move is cut off. Each call to MLflow is made to fail in turn."""

from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from blsp import tracking
from blsp.registry import aliases, lock
from blsp.registry.aliases import CutOff, held, move, repair
from blsp.registry.history import PROMOTED, reign_tag, reigns
from blsp.registry.lock import alone
from blsp.tracking.store import MODEL_TAG, Store, session
from tests.trained import Trained

CALLS = ("update_model_version", "set_model_version_tag", "set_registered_model_alias", "delete_model_version")
BEFORE = {"champion": "1", "challenger": "2"}
AFTER = {"champion": "3", "challenger": "3"}


class Stopped(BaseException):
    """As Prefect raises on SIGTERM: no Exception."""


class Registered:
    """A model of three versions, and a move that makes the third champion."""

    def __init__(self, trained: Trained, store: Store) -> None:
        self.store, self.name = store, trained.params.promote.model_name
        self.run = store.client.get_run(str(tracking.sync(trained.params)))
        source = f"models:/{self.run.data.tags[MODEL_TAG]}"
        store.client.create_registered_model(self.name)
        for _ in range(3):
            store.client.create_model_version(self.name, source, self.run.info.run_id)
        for alias, version in BEFORE.items():
            store.client.set_registered_model_alias(self.name, alias, version)

    def move(self) -> None:
        with alone(self.store, self.name, self.run, "promotion", repair) as ticket:
            move(self.store, self.name, ticket, AFTER, reign_tag(ticket, PROMOTED, 1))

    def state(self) -> tuple[dict[str, str], int, int]:
        """The aliases, how often a version was made champion by its tags, and the tickets that are out."""
        versions = self.store.client.search_model_versions(f"name = '{self.name}'")
        return held(self.store, self.name), len(reigns(versions)), len(lock.under_way(self.store, self.name))


@pytest.fixture
def registered(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registered]:
    monkeypatch.setattr(aliases, "PAUSE_S", 0.01)
    with session() as store:
        yield Registered(trained, store)


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], BaseException | None], *, done: bool) -> list[str]:
    """The calls made so far; the one of this number raises what `fails` says, with what it is to do `done` or not."""
    made: list[str] = []

    def replace(name: str) -> None:
        real = getattr(mlflow.MlflowClient, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            made.append(name)
            error = fails(len(made))
            if error is None or done:
                result = real(*arguments, **settings)
            if error is not None:
                raise error
            return result

        monkeypatch.setattr(mlflow.MlflowClient, name, call)

    for name in CALLS:
        replace(name)
    return made


def test_a_move_moves_all_and_tells_so(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    made = failing(monkeypatch, lambda number: None, done=True)
    registered.move()
    assert registered.state() == (AFTER, 1, 0)
    assert len(made) == 8, made  # the tests below fail each of them


@pytest.mark.parametrize("done", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize("error", [MlflowException("as injected"), Stopped()], ids=["mlflow", "stopped"])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_move_cut_off_anywhere_leaves_the_aliases_as_they_were(
    registered: Registered, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException, done: bool
) -> None:
    made = failing(monkeypatch, lambda made: error if made == number else None, done=done)
    complete = number == 8 and done  # the ticket was given back: the move counts, whatever was heard of it
    if complete and isinstance(error, Exception):
        registered.move()
    else:
        with pytest.raises((CutOff, MlflowException) if isinstance(error, Exception) else Stopped) as raised:
            registered.move()
        if made[number - 1] == "set_registered_model_alias" and isinstance(error, Exception):
            assert "cut off (as injected); the aliases" in str(raised.value)
    assert registered.state() == ((AFTER, 1, 0) if complete else (BEFORE, 0, 0))


@pytest.mark.parametrize("number", range(3, 9))
def test_where_mlflow_stays_away_the_next_one_puts_the_aliases_back(
    registered: Registered, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(aliases, "PATIENCE_S", 0.1)
    with monkeypatch.context() as away:
        failing(away, lambda made: MlflowException("away") if made >= number else None, done=False)
        with pytest.raises(CutOff, match="the next promotion or roll back first puts the aliases"):
            registered.move()
    assert registered.state()[2] == 1
    with (
        pytest.raises(lock.Busy, match="promotion by"),
        alone(registered.store, registered.name, registered.run, "next", repair),
    ):
        pass
    monkeypatch.setattr(lock, "LEASE_S", 0.0)
    with alone(registered.store, registered.name, registered.run, "next", repair):
        assert registered.state() == (BEFORE, 0, 1)
    assert registered.state() == (BEFORE, 0, 0)


def test_mlflow_that_comes_back_in_time_lets_the_move_be_undone(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = failing(monkeypatch, lambda made: MlflowException("away") if 6 <= made < 10 else None, done=False)
    with pytest.raises(CutOff, match="the aliases of .* are as they were"):
        registered.move()
    assert len(made) > 10
    assert registered.state() == (BEFORE, 0, 0)


def test_what_someone_has_set_since_is_left_alone(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "PATIENCE_S", 0.0)
    with monkeypatch.context() as away:
        failing(away, lambda made: MlflowException("away") if made == 8 or made > 8 else None, done=False)
        with pytest.raises(CutOff):
            registered.move()
    assert held(registered.store, registered.name) == AFTER
    registered.store.client.set_registered_model_alias(registered.name, "champion", "2")
    monkeypatch.setattr(lock, "LEASE_S", 0.0)
    with alone(registered.store, registered.name, registered.run, "next", repair):
        assert held(registered.store, registered.name) == {"champion": "2", "challenger": "2"}
