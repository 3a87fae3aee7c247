"""What a stage leaves on Prefect's pages: progress, metrics, and where its own pages are. A server that is away stops
no stage."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from blsp.tracking.pages import FOR_TRAINING

PROGRESS_EVERY_S = 5.0  # s between two updates of a progress artifact
METRIC_ROWS = 100  # rows a table artifact shows; the file has all
DIGITS = 4  # that count of a number in a table; the file has all
FIGURE = ("value", "low", "high")  # a figure and its interval, in one row

T = TypeVar("T")


class Progress:
    """The latest progress of one stage, published as one artifact while `publish` runs; and its run in MLflow, once
    that is known, as another."""

    def __init__(self, stage: str) -> None:
        self._key = _key(stage, "progress")
        self._stage = stage
        self._seen: tuple[str, int] | None = None
        self._published: tuple[str, int] | None = None
        self._artifact: UUID | None = None
        self._run_page: str | None = None
        self._run_page_published: str | None = None
        self._ended = asyncio.Event()

    def see(self, label: str, percent: int) -> None:
        """Nothing; the next update shows `percent` of what `label` names."""
        self._seen = (label, percent)

    def see_run(self, page: str) -> None:
        """Nothing; the next update links to this address of the stage's run in MLflow."""
        self._run_page = page

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
        """Nothing; afterwards the artifacts show what was seen last. Of what was not seen there is none."""
        if self._run_page != self._run_page_published and (page := self._run_page):
            key, about = _key(self._stage, "mlflow-run"), f"The run of {self._stage} in MLflow"
            await _unless_away(acreate_markdown_artifact(_run_links(page), key, about))
            self._run_page_published = page
        if self._seen is None or self._seen == self._published:
            return
        label, percent = self._seen
        description = f"{self._stage}: {label}" if label not in ("", self._stage) else self._stage
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
                rows = list(metric_rows(json.load(stream)))
        except (OSError, ValueError) as error:
            get_run_logger().warning("No table of metrics from %s: %s", path, error)
            continue
        shown = rows[:METRIC_ROWS]
        note = path if len(shown) == len(rows) else f"{path}, the first {len(shown)} of {len(rows)}"
        suffix = "metrics" if len(paths) == 1 else f"metrics-{path.rpartition('/')[2].removesuffix('.json')}"
        await _unless_away(acreate_table_artifact(shown, _key(stage, suffix), f"Metrics of {stage} ({note})"))


async def publish_pages(stage: str, outputs: Sequence[str]) -> None:
    """Nothing; afterwards an artifact names the pages among these outputs: HTML files, and folders' index.html."""
    pages = [page for output in outputs for page in (output, f"{output}/index.html") if page.endswith(".html")]
    if found := [page for page in pages if Path(page).is_file()]:
        text = f"Pages that `{stage}` wrote, in `{Path.cwd()}`:\n\n" + "\n".join(f"- `{page}`" for page in found)
        await _unless_away(acreate_markdown_artifact(f"{text}\n", _key(stage, "pages"), f"Pages of {stage}"))


def metric_rows(value: Any, name: str = "") -> Iterator[dict[str, int | float | str]]:
    """A row a number inside nested objects, by its dotted name and to four digits, and one a figure with its interval;
    text, lists and truth values are left out."""
    if isinstance(value, dict) and _is_number(value.get("value")):
        yield {"metric": name} | {key: _short(value[key]) for key in FIGURE if _is_number(value.get(key))}
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from metric_rows(item, f"{name}.{key}" if name else str(key))
    elif _is_number(value):
        yield {"metric": name, "value": _short(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(number: float) -> int | float:
    return number if isinstance(number, int) else float(f"{number:.{DIGITS}g}")


def _run_links(page: str) -> str:
    return (
        f"[The run in MLflow]({page}{FOR_TRAINING}): settings, data, commit\n\n"
        f"- [curves]({page}/model-metrics{FOR_TRAINING})\n"
        f"- [Data Docs]({page}/artifacts/data_docs/index.html{FOR_TRAINING}) of what it was trained on\n"
        f"- [all that is kept with it]({page}/artifacts{FOR_TRAINING}): figures, reports, the model's card\n"
    )


def _key(stage: str, suffix: str) -> str:
    """An artifact's key, of the lower-case letters, digits and dashes that Prefect allows."""
    return re.sub(r"[^a-z0-9]+", "-", f"{stage}-{suffix}".lower()).strip("-")


async def _unless_away(call: Awaitable[T]) -> T | None:
    try:
        return await call
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("Prefect's server did not take an artifact: %s", error)
        return None
