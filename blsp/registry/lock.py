"""One promotion at a time, whatever machines they run on: a lock made of nothing but MLflow's registry.

MLflow has no compare-and-swap: of two writers of an alias or a tag the last one wins, unseen. It has one thing that
is atomic: a new version of a registered model gets the next number, and the database refuses a number twice. A number
is never given again, for what is deleted keeps its row. So whoever wants to work draws a ticket, a version of the
model `NAME.lock`, and it is the turn of the lowest ticket that is alive. Number n + 1 is drawn where n is committed
already: of two that draw, the later always sees the earlier.

A ticket is alive for LEASE_S after its holder was last heard of, by the clock that stamps versions: the server's own,
so the clocks of the holders do not matter. (Clients that open the database themselves stamp with theirs.) A holder
that was not heard for SURE_S, by its own stopwatch, takes its ticket for lost and does nothing more. So two never
work at once as long as a request takes effect within the difference. All of it asks for one database: not for one
that is read through replicas.
"""

import contextlib
import getpass
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from blsp.errors import BlspError
from blsp.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

LEASE_S = 180.0
SURE_S = 90.0
RENEW_EVERY_S = 20.0
HOLDER_TAG = "blsp.holder"
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a machine sleeps


class Busy(BlspError):
    """Another promotion is under way; the message names it and when it was last heard of."""


class LostTurn(BlspError):
    """The holder of a ticket was not heard of for too long: by now, another may be at work."""


class Ticket:
    """A place in the queue, renewed in the background while it is held."""

    def __init__(self, opened: Store, name: str, run: "Run", purpose: str) -> None:
        self._client, self._name, self._purpose = opened.client, f"{name}.lock", f"{purpose} by {_who()}"
        self._heard_s = _now_s()
        self._holder = uuid.uuid4().hex
        drawn = self._client.create_model_version(
            self._name,
            run.info.artifact_uri,
            run.info.run_id,
            tags={HOLDER_TAG: self._holder},
            description=self._purpose,
        )
        self._version = str(drawn.version)
        self.number = int(drawn.version)
        """Greater than that of every ticket drawn before."""
        self.drawn_ms = int(drawn.creation_timestamp)
        """When, in ms since 1970, by the registry's clock."""
        self._kept = True
        self._renewing = threading.Lock()
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="promotion-lock", daemon=True)

    def keep(self) -> None:
        """Nothing; from now on the ticket is renewed until it is given back."""
        self._heart.start()

    def confirm(self) -> None:
        """Nothing; then nobody else is at work for SURE_S. Raises LostTurn, or what MLflow raises where it is away."""
        with self._renewing:
            now_s = self.sure()
            self._client.update_model_version(self._name, self._version, self._purpose)
            self._heard_s = now_s

    def sure(self) -> float:
        """What the stopwatch says, in s. Raises LostTurn where the holder was last heard of more than SURE_S ago."""
        now_s = _now_s()
        if now_s - self._heard_s > SURE_S:
            raise LostTurn(
                f"MLflow was out of reach for {now_s - self._heard_s:.0f} s, so another promotion may be at work by "
                "now; start this one again"
            )
        return now_s

    def note(self, key: str, value: str) -> None:
        """Nothing; afterwards the ticket says so, to whoever finds it."""
        self._client.set_model_version_tag(self._name, self._version, key, value)

    def give_back(self) -> None:
        """Nothing; it is the next one's turn. Raises what MLflow raises where it is away."""
        self._over.set()
        if self._kept:
            with self._renewing, unless_gone():
                self._client.delete_model_version(self._name, self._version)
            self._kept = False

    def leave(self) -> None:
        """Nothing; the ticket runs out, and the next one's holder repairs what this one's could not."""
        self._over.set()
        self._kept = False

    def is_there(self) -> bool:
        """Whether the registry still has it: it was neither given back nor cleared."""
        return any(one.tags.get(HOLDER_TAG) == self._holder for one in _tickets(self._client, self._name))

    def others(self) -> list["ModelVersion"]:
        """The tickets drawn before that were not given back, in their order."""
        # One of this very holder is there where MLflow's answer was lost and the drawing repeated.
        return [
            one
            for one in _tickets(self._client, self._name)
            if int(one.version) < self.number and one.tags.get(HOLDER_TAG) != self._holder
        ]

    def is_alive(self, other: "ModelVersion") -> bool:
        """Whether the other's holder may still be at work, as of when this ticket was drawn."""
        return self.drawn_ms - int(other.last_updated_timestamp) < LEASE_S * 1000

    def clear(self, other: "ModelVersion") -> None:
        """Nothing; a ticket whose holder is gone is out of the queue."""
        with unless_gone():
            self._client.delete_model_version(self._name, other.version)

    def _beat(self) -> None:
        while not self._over.wait(RENEW_EVERY_S):
            try:
                self.confirm()
            except LostTurn:
                return
            except Exception as error:  # whatever MLflow raises: the next beat tries again
                logger.debug("the lock could not be renewed: %s", error)


@contextlib.contextmanager
def alone(
    opened: Store, name: str, run: "Run", purpose: str, repair: Callable[[Store, str, "ModelVersion"], None]
) -> Iterator[Ticket]:
    """A block that one process at a time is in, for all promotions of the model `name`.

    `repair` is called first with each ticket whose holder was cut off. `run` is any run of the model: MLflow wants a
    version to come from somewhere. Raises Busy where another is in it.
    """
    _make_queue(opened, name)
    ticket = Ticket(opened, name, run, purpose)
    try:
        others = ticket.others()
        for other in others:
            if ticket.is_alive(other):
                quiet_s = max(ticket.drawn_ms - int(other.last_updated_timestamp), 0) / 1000
                raise Busy(
                    f"{name}: another one is under way, the {other.description}, last heard of {quiet_s:.0f} s ago; "
                    f"start again when it has ended (where it was killed, {LEASE_S - quiet_s:.0f} s from now)"
                )
        ticket.keep()
        for other in others:
            ticket.confirm()
            repair(opened, name, other)
            ticket.clear(other)
        yield ticket
    finally:
        with contextlib.suppress(*failures()):  # then it runs out by itself
            ticket.give_back()


def under_way(opened: Store, name: str) -> list["ModelVersion"]:
    """The tickets that were drawn and not given back, by processes at work or cut off."""
    return _tickets(opened.client, f"{name}.lock")


def _tickets(client: "MlflowClient", queue: str) -> list["ModelVersion"]:
    return sorted(client.search_model_versions(f"name = '{queue}'"), key=lambda one: int(one.version))


def _make_queue(opened: Store, name: str) -> None:
    from mlflow.exceptions import MlflowException

    about = f"Who is promoting {name} just now: a version for each, deleted when it is done. It holds no model."
    if opened.client.search_registered_models(filter_string=f"name = '{name}.lock'"):
        return
    try:
        opened.client.create_registered_model(f"{name}.lock", description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextlib.contextmanager
def unless_gone() -> Iterator[None]:
    """A block in which what is to be deleted may be gone already."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def failures() -> tuple[type[Exception], ...]:
    """What MLflow raises where it, its database or its files are out of reach."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user} at {socket.gethostname()}, process {os.getpid()}"


def _now_s() -> float:
    return time.clock_gettime(CLOCK)
