"""The aliases of a registered model: who holds them, and how they move, all or none.

What a move is about to change is written on the lock's ticket first. The move counts once the ticket is given back;
until then whatever goes wrong is undone: here, where the process still lives and MLflow answers, else by the holder of
the next ticket. Undone is only what the move itself had done: an alias that someone has set since stays.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from blsp.errors import BlspError
from blsp.registry.lock import LostTurn, Ticket, failures, unless_gone
from blsp.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHALLENGER = "challenger"
CHAMPION = "champion"
MOVE_TAG = "blsp.move"
PATIENCE_S = 45.0  # how long a move waits for MLflow to come back and let it undo what it did
PAUSE_S = 1.0


class CutOff(BlspError):
    """A move that something stopped midway; the message says why, and how the aliases are now."""


@dataclass(frozen=True)
class Move:
    """Which versions the aliases are to have, which they had (null: none), and the tag that tells of it."""

    to: Mapping[str, str]
    had: Mapping[str, str | None]
    version: str | None = None
    tag: str | None = None


def held(opened: Store, name: str) -> dict[str, str]:
    """{alias: version} of the model; empty where there is no such model."""
    models = opened.client.search_registered_models(filter_string=f"name = '{name}'")
    return {alias: str(version) for alias, version in models[0].aliases.items()} if models else {}


def holder(opened: Store, name: str, alias: str) -> "ModelVersion | None":
    """The version that has the alias."""
    version = held(opened, name).get(alias)
    return opened.client.get_model_version(name, version) if version else None


def move(opened: Store, name: str, ticket: Ticket, to: Mapping[str, str], told: tuple[str, str] | None = None) -> None:
    """Nothing; afterwards the aliases are at these versions, and the ticket is given back.

    `told` is the tag (key, value) for the new champion. The champion's alias is the last to move. Where anything fails
    all aliases are as they were, or will be before the next promotion begins; CutOff says which of the two.
    """
    before = held(opened, name)
    had = {alias: before.get(alias) for alias in to}
    planned = Move(to, had, to[CHAMPION], told[0]) if told else Move(to, had)
    ticket.confirm()
    ticket.note(MOVE_TAG, json.dumps(asdict(planned)))
    try:
        if told:
            opened.client.set_model_version_tag(name, to[CHAMPION], *told)
        for alias in sorted(to, key=lambda alias: alias == CHAMPION):
            ticket.confirm()
            opened.client.set_registered_model_alias(name, alias, to[alias])
        ticket.give_back()
    except BaseException as error:
        if not _undone(opened, name, ticket, planned) and isinstance(error, Exception):
            return
        if not isinstance(error, failures()):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise CutOff(f"cut off ({reason}); the aliases of {name} are as they were, start again") from error


def repair(opened: Store, name: str, cut_off: "ModelVersion") -> None:
    """Nothing; what the holder of this ticket had moved, and could not move back, is where it was."""
    if MOVE_TAG not in cut_off.tags:
        return
    logger.warning("%s: the %s was cut off; the aliases it had moved go back", name, cut_off.description)
    _undo(opened, name, Move(**json.loads(cut_off.tags[MOVE_TAG])))


def _undone(opened: Store, name: str, ticket: Ticket, moved: Move) -> bool:
    """Whether the move was undone; if not it was complete, and only MLflow's last answer got lost.

    Raises CutOff where MLflow does not come back in time: then the holder of the next ticket undoes it.
    """
    until_s = time.monotonic() + PATIENCE_S
    try:
        while True:
            try:
                if not ticket.is_there():
                    ticket.sure()  # else it may be gone because another holder undid the move
                    return False
                ticket.confirm()
                _undo(opened, name, moved)
                ticket.give_back()
                return True
            except failures():
                if time.monotonic() > until_s:
                    raise
            time.sleep(PAUSE_S)
    except BaseException as error:
        ticket.leave()
        if not isinstance(error, (LostTurn, *failures())):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise CutOff(
            f"cut off midway ({reason}); the next promotion or roll back first puts the aliases of {name} back to "
            "where they were; start it when MLflow is there again"
        ) from error


def _undo(opened: Store, name: str, moved: Move) -> None:
    now = held(opened, name)
    for alias in sorted(moved.to, key=lambda alias: alias != CHAMPION):
        former = moved.had[alias]
        if now.get(alias) != moved.to[alias] or former == moved.to[alias]:
            continue
        if former is None:
            opened.client.delete_registered_model_alias(name, alias)
        else:
            opened.client.set_registered_model_alias(name, alias, former)
    if moved.version and moved.tag:
        with unless_gone():
            opened.client.delete_model_version_tag(name, moved.version, moved.tag)
