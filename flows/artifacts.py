"""What a stage leaves on Prefect's pages: progress and metrics. A server that is away stops no stage."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import acreate_progress_artifact, acreate_table_artifact, aupdate_progress_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

PROGRESS_EVERY_S = 5.0  # s between two updates of a progress artifact
METRIC_ROWS = 100  # rows a table artifact shows; the file has all

T = TypeVar("T")


class Progress:
    """The latest progress of one stage, published as one artifact while `publish` runs."""

    def __init__(self, stage: str) -> None:
        self._key = _key(stage, "progress")
        self._stage = stage
        self._seen: tuple[str, int] | None = None
        self._published: tuple[str, int] | None = None
        self._artifact: UUID | None = None
        self._ended = asyncio.Event()

    def see(self, label: str, percent: int) -> None:
        """Nothing; the next update shows `percent` of what `label` names."""
        self._seen = (label, percent)

    def end(self) -> None:
        """Nothing; `publish` returns soon, after it has shown what was seen last."""
        self._ended.set()

    async def publish(self) -> None:
        """Nothing, once `end` was called. Cancelling instead could cut off the call that makes the artifact, and
        the next one would make a second."""
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), PROGRESS_EVERY_S)
            await self._flush()
        await self._flush()  # what was seen while the last call was under way

    async def _flush(self) -> None:
        """Nothing; afterwards the artifact shows what was seen last. Without any progress there is none."""
        if self._seen is None or self._seen == self._published:
            return
        label, percent = self._seen
        description = f"{self._stage}: {label}" if label else self._stage
        if self._artifact is None:
            self._artifact = await _unless_away(acreate_progress_artifact(percent, self._key, description))
        else:
            await _unless_away(aupdate_progress_artifact(self._artifact, percent, description))
        self._published = (label, percent)


async def publish_metrics(stage: str, paths: tuple[str, ...]) -> None:
    """Nothing; afterwards each JSON file of `paths` is a table artifact.

    One that cannot be read is only warned of, for the stage itself has ended well.
    """
    for path in paths:
        if not path.endswith(".json"):
            continue
        try:
            with open(path, encoding="utf-8") as stream:
                rows = flatten(json.load(stream))
        except (OSError, ValueError) as error:
            get_run_logger().warning("No table of metrics from %s: %s", path, error)
            continue
        shown = [{"metric": name, "value": value} for name, value in list(rows.items())[:METRIC_ROWS]]
        note = path if len(shown) == len(rows) else f"{path}, the first {len(shown)} of {len(rows)}"
        suffix = "metrics" if len(paths) == 1 else f"metrics-{path.rpartition('/')[2].removesuffix('.json')}"
        await _unless_away(acreate_table_artifact(shown, _key(stage, suffix), f"Metrics of {stage} ({note})"))


def flatten(value: Any, name: str = "") -> dict[str, int | float]:
    """The numbers inside nested objects by their dotted names; text, lists and truth values are left out."""
    if isinstance(value, dict):
        return {
            inner: number
            for key, item in value.items()
            for inner, number in flatten(item, f"{name}.{key}" if name else str(key)).items()
        }
    return {name: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def _key(stage: str, suffix: str) -> str:
    """An artifact's key, of the lower-case letters, digits and dashes that Prefect allows."""
    return re.sub(r"[^a-z0-9]+", "-", f"{stage}-{suffix}".lower()).strip("-")


async def _unless_away(call: Awaitable[T]) -> T | None:
    try:
        return await call
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("Prefect's server did not take an artifact: %s", error)
        return None
