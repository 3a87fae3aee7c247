"""Mirroring beside a stage: a child process talks to MLflow, so that the stage never waits for it.

The child pays for the import (8 s), the SQLite file (10 s) and every retry of a server that is away; it
shares neither the interpreter lock with training nor locks with the data loader's forks. Rows reach it
through a pipe that is never waited on: what does not fit is dropped here, and replayed from
reports/train_log.jsonl at the end.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from types import TracebackType
from typing import Any, Self

from blsp.params import Params
from blsp.tracking import store
from blsp.tracking.local import CURVE, curve_points, training_key
from blsp.tracking.machine import machine_tags
from blsp.tracking.pages import ANNOUNCED, run_page
from blsp.tracking.store import ADAPTER_TAG, KEY_TAG, TrackingError
from blsp.tracking.sync import create_run, experiment_of, log_points, sync
from blsp.training.places import PIPELINE, Places

logger = logging.getLogger(__name__)

PIPE_BUF = 4096  # bytes a pipe takes whole or not at all
CLOSE_TIMEOUT_S = 600.0  # the last upload may be large; what hangs ends by MLFLOW_HTTP_REQUEST_TIMEOUT
SAID_SO = 3  # exit status of a child that has told the user itself


class Tracker:
    """Does nothing: what training gets with BLSP_TRACKING=off, and the shape of the one that does."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing, at once; the numbers may then be seen in MLflow."""

    def close(self, *, finished: bool = True) -> None:
        """Nothing; with `finished`, the run has been made whole from the stage's files if MLflow is there."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finished=error is None)


class LiveTracker(Tracker):
    """A Tracker with a child process behind it."""

    def __init__(self, params: Params, places: Places, *, live: bool) -> None:
        self._places = places
        self._child = subprocess.Popen([sys.executable, "-m", "blsp.tracking"], stdin=subprocess.PIPE, bufsize=0)
        assert self._child.stdin is not None
        self._pipe = self._child.stdin.fileno()
        opening = {"live": live, "params": params.model_dump_json(by_alias=True), "places": vars(places)}
        with contextlib.suppress(BrokenPipeError):  # a child that dies at once is spoken of in close()
            os.write(self._pipe, _line(opening))  # the pipe is empty yet and holds 64 KiB
        os.set_blocking(self._pipe, False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        line = _line({**metrics, "step": step})
        # A full pipe, or a child that is gone: training goes on, and the row is in the log for later.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            if len(line) <= PIPE_BUF:
                os.write(self._pipe, line)

    def close(self, *, finished: bool = True) -> None:
        if self._child.returncode is not None:
            return
        try:
            self._child.communicate(_line({"finished": True}) if finished else None, timeout=CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.returncode not in (0, SAID_SO):
            logger.warning(
                "recording to MLflow at %s ended with status %s; %s and %s are complete: record them with `%s`",
                store.uri(),
                self._child.returncode,
                self._places.adapter,
                self._places.report,
                f"blsp track {self._places.options}".strip(),
            )


def open_tracker(params: Params, places: Places = PIPELINE) -> Tracker:
    """What training logs to: the curve as it grows, and the whole run when the block ends well.

    Open one on the main process only, and let the block end after all that belongs into these places is written.
    """
    return LiveTracker(params, places, live=True) if store.enabled() else Tracker()


def mirror_after(params: Params) -> Tracker:
    """A block for stages that have no curve: when it ends well, the run is completed from their files."""
    return LiveTracker(params, PIPELINE, live=False) if store.enabled() else Tracker()


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


class _Mirror:
    """The child's side: what has been said to MLflow, and whether it still listens."""

    def __init__(self, params: Params, places: Places) -> None:
        self.params, self.places = params, places
        self.run_id: str | None = None
        self.live = False
        self.warned = False
        self._known: dict[str, set[int]] = {}

    def open(self, *, live: bool) -> None:
        self.live = live
        with self._forgiving(), store.session(experiment_of(self.places)) as opened:
            if not live:
                return
            key = training_key(self.params, self.places)
            began = [run for run in opened.runs_with(KEY_TAG, key) if ADAPTER_TAG not in run.data.tags]
            run = began[0] if began else create_run(opened, self.params, self.places)
            self._known = {name: set(points) for name, points in opened.curve(run, CURVE).items()}
            opened.client.update_run(run.info.run_id, status="RUNNING")
            self._name_machine(opened, run.info.run_id)
            self.run_id = run.info.run_id
            _announce(opened, run.info.run_id)

    def write(self, rows: list[dict[str, Any]]) -> None:
        points = [
            (name, row["step"], value)
            for row in rows
            for name, value in curve_points(row).items()
            if row["step"] not in self._known.get(name, ())  # resumed training repeats a few steps
        ]
        if points and self.run_id and not self.warned:
            with self._forgiving(), store.session(experiment_of(self.places)) as opened:
                log_points(opened, self.run_id, points)

    def finish(self) -> None:
        was_away = self.warned
        with self._forgiving():
            run_id = sync(self.params, self.places, self.run_id)
            if run_id:
                with store.session(experiment_of(self.places)) as opened:
                    if self.live:
                        self._name_machine(opened, run_id)
                    if run_id != self.run_id:
                        _announce(opened, run_id)
            if was_away:
                logger.info("MLflow at %s is back: the whole run was recorded", store.uri())
                self.warned = False

    def abandon(self) -> None:
        if self.run_id and not self.warned:
            with self._forgiving(), store.session(experiment_of(self.places)) as opened:
                opened.client.set_terminated(self.run_id, "KILLED")

    def _name_machine(self, opened: store.Store, run_id: str) -> None:
        # Only here is it known to be the machine that trains: a replay may come from any.
        for key, value in machine_tags().items():
            opened.client.set_tag(run_id, key, value)

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except TrackingError as error:
            if not self.warned:
                logger.warning("%s", error)
            self.warned = True


def serve(descriptor: int) -> int:
    """The child's exit status once the pipe has ended: 0, or SAID_SO after a warning about MLflow."""
    inbox = _messages(descriptor)
    opening, *rows = next(inbox)
    mirror = _Mirror(Params.model_validate_json(opening["params"]), Places(**opening["places"]))
    mirror.open(live=opening["live"])
    finished = False
    for batch in chain([rows], inbox):
        finished = finished or any("finished" in message for message in batch)
        mirror.write([message for message in batch if "step" in message])
    if finished:
        mirror.finish()
    else:
        mirror.abandon()
    return SAID_SO if mirror.warned else 0


def main() -> int:
    """The exit status of `python -m blsp.tracking`, the child of a stage."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; it ends with the pipe
    os.nice(10)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return serve(sys.stdin.fileno())


def _announce(opened: store.Store, run_id: str) -> None:
    """Nothing; the stage's output, which is on Prefect's pages too, says where the run is to be seen."""
    if page := run_page(opened.experiment_id, run_id):
        logger.info("%s%s", ANNOUNCED, page)


def _messages(descriptor: int) -> Iterator[list[dict[str, Any]]]:
    rest = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield [json.loads(line) for line in lines]
