"""Two results side by side: every number of their metric files, and the digests of data and models."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from blsp import markdown

COST = frozenset({"train_s", "peak_memory_gib"})  # what a training took: of the hour, not of the result
CHANCE = frozenset({"p"})  # how likely a difference is by chance: says nothing between machines
SHOWN = 30  # rows that a terminal gets; reports/reproduction.json has all
ABSENT = "absent"


@dataclass(frozen=True)
class Difference:
    """One value that is not what was published."""

    file: str
    what: str  # `systems.speech.asr.wer.value`; of a file that is compared as a whole, `digest`
    published: Any
    now: Any
    distance: float | None  # |now - published| / max(1, |published|); None for what is no number
    counts: bool  # whether it makes the reproduction fail


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of all that is in nested objects and lists, but objects and lists."""
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def compare_metrics(file: str, published: str, now: str, tolerance: float) -> tuple[list[Difference], int]:
    """The differences of a JSON metric file, and how many values were compared.

    Without a tolerance every value counts, words too, but what a training cost. With one, numbers alone count, and of
    those none that says how likely something is by chance. Raises ValueError where either text is not JSON.
    """
    before, after = dict(leaves(json.loads(published))), dict(leaves(json.loads(now)))
    found = []
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name, ABSENT), after.get(name, ABSENT)
        if one == other and type(one) is type(other):
            continue
        distance = abs(other - one) / max(1.0, abs(one)) if _number(one) and _number(other) else None
        last = name.rpartition(".")[2]
        counts = last not in COST
        if tolerance:
            counts = counts and last not in CHANCE and (_number(one) or _number(other))
            counts = counts and (distance is None or distance > tolerance)
        found.append(Difference(file, name, one, other, distance, counts))
    return found, len({*before, *after})


def compare_digests(published: Mapping[str, str], now: Mapping[str, str], counting: frozenset[str]) -> list[Difference]:
    """The differences between DVC's digests of the same paths; those of `counting` count."""
    return [
        Difference(path, "digest", digest, now.get(path, ABSENT), None, path in counting)
        for path, digest in published.items()
        if now.get(path) != digest
    ]


def table(differences: list[Difference]) -> str:
    """A Markdown table, those that count first, the most distant first."""
    order = sorted(differences, key=lambda one: (not one.counts, -(one.distance or 0.0), one.file, one.what))
    rows = [
        (
            one.file,
            one.what,
            _text(one.published),
            _text(one.now),
            "" if one.distance is None else f"{one.distance:.3g}",
            "differs" if one.counts else "noted",
        )
        for one in order[:SHOWN]
    ]
    more = f"\nand {len(order) - SHOWN} more: reports/reproduction.json" if len(order) > SHOWN else ""
    return markdown.table(("file", "what", "published", "now", "distance", ""), rows) + more


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())[:40].replace("|", "\\|")
