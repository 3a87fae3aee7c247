"""What a flow shows in a terminal: the same records as Prefect's pages, in short lines and said once."""

import logging
import os
import signal
import sys

from prefect.logging.handlers import PrefectConsoleHandler

# Prefect's own words on a run, where the flows here say the same in fewer.
_REPEATED = (
    "Beginning flow run",
    "Finished in state",
    "Task run failed with state",
    "Task run failed with exception: TaskRunTimeoutError",
    "Starting temporary server",
    "Stopping temporary server",
    "Still processing items",
    "Crash detected! Execution was cancelled",
)


def readable(pages: bool = False) -> None:
    """Nothing; afterwards this process's terminal log reads `time name | message`. Prefect's pages keep all.

    `pages` says whether the server has pages that a link to the run would open.
    """

    def wanted(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        linked = pages and record.name != "prefect.engine"  # which gives the flow's link a second time
        return not text.startswith(_REPEATED) and (linked or not text.startswith("View at "))

    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setFormatter(_Lines())
            handler.addFilter(wanted)


def outlive_reader() -> None:
    """Nothing; afterwards this process goes on when whoever reads its terminal log is gone, as a worker may be.

    Rich, which writes it, would end the process (`Console.on_broken_pipe`). Prefect's pages keep all.
    """

    def say_nothing_more() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = say_nothing_more  # type: ignore[method-assign]


def end_on_signals() -> None:
    """Nothing; SIGTERM and SIGHUP end this process as an exception does, so that stages are stopped and a temporary
    server is shut down on the way out. What is ignored, as nohup has SIGHUP, stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        name = getattr(record, "task_run_name", None) or getattr(record, "flow_name", None) or record.name
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        text = super().format(record)  # the message, and a traceback where there is one
        return f"{self.formatTime(record, '%H:%M:%S')} {name:<13} | {level}{text}"
