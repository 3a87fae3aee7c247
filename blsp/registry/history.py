"""Which versions were champion, when and why: read from the tags of the versions themselves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from blsp import markdown
from blsp.params import Params
from blsp.registry.aliases import CHALLENGER, CHAMPION, MOVE_TAG, held
from blsp.registry.lock import Ticket, under_way
from blsp.tracking.store import ADAPTER_TAG, COMMIT_TAG, Store, session

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REIGN_TAG = "blsp.champion."  # and the number of the promotion: a version can be champion more than once
GATES_TAG = "blsp.gates"  # what the gates last said of a version, in words
PROMOTED, ROLLED_BACK = "promoted", "rolled back"


@dataclass(frozen=True)
class Reign:
    """One time that a version became champion."""

    number: int
    """Of the promotion or roll back that made it so; later ones have greater numbers."""
    version: int
    at: str
    why: str
    after: int | None
    """The champion before; None for the first one."""


def reign_tag(ticket: Ticket, why: str, after: int | None) -> tuple[str, str]:
    """The tag (key, value) of a version that becomes champion under this ticket."""
    at = datetime.fromtimestamp(ticket.drawn_ms / 1000, UTC).isoformat(timespec="seconds")
    return f"{REIGN_TAG}{ticket.number:06d}", json.dumps({"at": at, "why": why, "after": after})


def reigns(versions: "Sequence[ModelVersion]") -> list[Reign]:
    """All of them, the first one first."""
    found = [
        Reign(number=int(key.removeprefix(REIGN_TAG)), version=int(version.version), **json.loads(value))
        for version in versions
        for key, value in version.tags.items()
        if key.startswith(REIGN_TAG)
    ]
    return sorted(found, key=lambda reign: reign.number)


def line(past: Sequence[Reign], champion: int) -> list[int]:
    """The versions that were champion one after the other up to the present one, without those rolled back from.

    Rolling back again from what a roll back gave goes further back, and not forth.
    """
    found: list[int] = []
    for reign in past:
        if not found and reign.after is not None:
            found.append(reign.after)
        if reign.why == ROLLED_BACK and reign.version in found:
            del found[len(found) - found[::-1].index(reign.version) :]
        else:
            found.append(reign.version)
    return found if found[-1:] == [champion] else [*found, champion]  # it may have been set by hand


def overview(params: Params) -> str:
    """Who is champion and challenger, how each became so, and what is under way: lines for a terminal."""
    with session() as opened:
        return _overview(opened, params.promote.model_name)


def _overview(opened: Store, name: str) -> str:
    aliases = held(opened, name)
    versions = sorted(opened.client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))
    if not versions:
        return f"{name}: nothing is registered yet; promote with `python -m flows.promote`"
    known = {str(one.version): one for one in versions}
    lines = [
        f"{alias + ':':<12}{_described(known[aliases[alias]]) if aliases.get(alias) in known else 'none'}"
        for alias in (CHAMPION, CHALLENGER)
    ]
    past = reigns(versions)
    rows = [
        [_minute(one.at), f"version {one.version}", one.why, "" if one.after is None else f"version {one.after}"]
        for one in past
    ]
    if rows:
        lines += ["", markdown.table(["when (UTC)", "champion", "why", "after"], rows)]
    for ticket in under_way(opened, name):
        heard = datetime.fromtimestamp(int(ticket.last_updated_timestamp) / 1000, UTC).isoformat(timespec="seconds")
        moved = ", with aliases being moved" if MOVE_TAG in ticket.tags else ""
        lines += ["", f"under way, or cut off: {ticket.description}{moved}, last heard of at {heard}"]
    return "\n".join(lines)


def _minute(at: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M}"


def _described(version: "ModelVersion") -> str:
    tags = version.tags
    parts = [f"version {version.version}", f"adapter {tags.get(ADAPTER_TAG, 'unknown')[:12]}"]
    parts += [f"commit {tags[COMMIT_TAG][:12]}"] if COMMIT_TAG in tags else []
    return ", ".join(parts) + (f"\n{'':<12}{tags[GATES_TAG]}" if GATES_TAG in tags else "")
