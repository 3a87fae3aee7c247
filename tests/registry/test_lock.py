import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blsp import tracking
from blsp.registry import lock
from blsp.registry.aliases import held
from blsp.registry.lock import Busy, LostTurn, alone, under_way
from blsp.tracking.store import Store, session
from tests.trained import PARAMS, Trained

PROMOTING = Path(__file__).with_name("promoting.py")


@pytest.fixture
def store(trained: Trained) -> Iterator[Store]:
    with session() as opened:
        yield opened


@pytest.fixture
def turn(trained: Trained, store: Store) -> Any:
    """`alone` for the model of this test, and the list of tickets that it repaired after."""
    run = store.client.get_run(str(tracking.sync(trained.params)))
    repaired: list[str] = []
    name = trained.params.promote.model_name

    def take(purpose: str = "promotion") -> Any:
        return alone(store, name, run, purpose, lambda opened, model, ticket: repaired.append(ticket.description))

    return take, repaired


def test_the_second_is_told_who_the_first_is(turn: Any, trained: Trained, store: Store) -> None:
    take, repaired = turn
    with take("promotion of adapter abc") as first:
        message = rf"promotion of adapter abc by .* at .*, process {os.getpid()}, last heard of \d s ago"
        with pytest.raises(Busy, match=message), take():
            raise AssertionError("both are in")
        with pytest.raises(Busy), take():
            raise AssertionError("the first is in still")
    with take() as last:
        assert last.number > first.number
    assert (repaired, under_way(store, trained.params.promote.model_name)) == ([], [])


def test_many_at_once_are_in_one_at_a_time(turn: Any) -> None:
    take, _ = turn
    inside, most, entered, refused = 0, 0, 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most, entered, refused
        for _ in range(6):
            try:
                with take():
                    with counting:
                        inside, entered, most = inside + 1, entered + 1, max(most, inside + 1)
                    time.sleep(0.02)
                    with counting:
                        inside -= 1
            except Busy:
                with counting:
                    refused += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered >= 1 and entered + refused == 24


def test_a_holder_that_is_heard_of_keeps_its_turn_beyond_the_lease(turn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    take, repaired = turn
    monkeypatch.setattr(lock, "LEASE_S", 2.0)
    monkeypatch.setattr(lock, "RENEW_EVERY_S", 0.1)
    with take():
        time.sleep(3.0)
        with pytest.raises(Busy), take():
            pass
    assert repaired == []


def test_a_holder_that_is_not_heard_of_loses_its_turn_before_another_gets_it(
    turn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, repaired = turn
    monkeypatch.setattr(lock, "RENEW_EVERY_S", 1000.0)
    monkeypatch.setattr(lock, "LEASE_S", 1.0)
    monkeypatch.setattr(lock, "SURE_S", 0.5)
    with take("first") as first:
        first.confirm()
        time.sleep(1.2)
        with take("second"), pytest.raises(LostTurn, match="was out of reach for 1 s"):
            first.confirm()
    assert [text.partition(" by ")[0] for text in repaired] == ["first"]


def start(folder: Path, model: str, weights: str, lease_s: float = 180.0) -> "subprocess.Popen[str]":
    command = [sys.executable, str(PROMOTING), str(folder), model, weights, str(lease_s)]
    environment = {**os.environ, "PYTHONPATH": str(PARAMS.parent)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline_s, f"{path} did not come"
        time.sleep(0.05)


def test_of_two_processes_one_promotes_and_the_other_says_why_not(
    trained: Trained, store: Store, tmp_path: Path
) -> None:
    model = trained.params.promote.model_name
    both = [start(tmp_path / name, model, name) for name in ("one", "two")]
    for name in ("one", "two"):
        wait_for(tmp_path / name / "ready")
    for name in ("one", "two"):
        (tmp_path / name / "go").touch()
    ended = [(process.communicate(timeout=120), process.returncode) for process in both]
    codes = [code for _, code in ended]
    assert sorted(codes) == [0, 1], ended
    (won, _), _ = ended[codes.index(0)]
    (_, lost), _ = ended[codes.index(1)]
    assert won.strip().endswith(f"{model} version 1 is champion now")
    assert f"{model}: another one is under way, the promotion of adapter" in lost
    assert held(store, model) == {"champion": "1", "challenger": "1"}
    assert under_way(store, model) == []


def test_a_killed_promotion_holds_the_next_one_up_for_the_lease_alone(
    trained: Trained, store: Store, tmp_path: Path
) -> None:
    model = trained.params.promote.model_name
    killed = start(tmp_path / "killed", model, "killed")
    wait_for(tmp_path / "killed" / "ready")
    (tmp_path / "killed" / "go").touch()
    wait_for(tmp_path / "killed" / "asking")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [ticket.description.partition(" by ")[0][:9] for ticket in under_way(store, model)] == ["promotion"]
    assert held(store, model) == {}
    next_one = start(tmp_path / "next", model, "next", lease_s=0.5)
    wait_for(tmp_path / "next" / "ready")
    (tmp_path / "next" / "go").touch()
    out, err = next_one.communicate(timeout=120)
    assert next_one.returncode == 0, err
    assert out.strip().endswith("version 2 is champion now")
    with contextlib.suppress(ProcessLookupError):
        killed.kill()
    assert under_way(store, model) == []
