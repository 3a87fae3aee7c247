"""`make paper` and `make ablations`: a further DVC pipeline under experiments/, its stages counted as they run."""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from blsp.errors import BlspError
from flows.dvc_graph import Graph, load_graph
from flows.stage_process import GUARD

_BEGINS = re.compile(r"Running stage '(?P<name>.+)':|Stage '(?P<cached>.+)' is cached")
_CHATTER = re.compile(r"Stage '.+' didn't change, skipping|> |Generating lock file|Updating lock file|Use `dvc push`")


def stale(graph: Graph) -> list[str]:
    """The stages of the graph that `dvc repro` would run: those that changed, and all that come after them."""
    names: list[str] = []
    for stage in graph.stages:  # upstream first
        if not stage.unchanged or any(name in names for name in stage.upstream):
            names.append(stage.name)
    return names


def run(experiment: str) -> int:
    """0 where every stage of experiments/`experiment` and before it is up to date afterwards, else 1.

    A stage that fails stops only those that need what it writes.
    """
    target = f"experiments/{experiment}/dvc.yaml"
    graph = asyncio.run(load_graph([target]))
    to_run = stale(graph)
    print(
        f"{experiment}: {len(to_run)} of {len(graph.stages)} stages are stale and run one after the other", flush=True
    )
    begun = 0
    with _dvc("repro", "--keep-going", target) as dvc:
        for line in dvc.stdout or ():
            if begins := _BEGINS.match(line):
                begun += 1
                name = (begins["name"] or begins["cached"]).removeprefix(f"{target}:")
                print(f"\n[{begun} of {len(to_run)}] {name}", flush=True)
            elif line.strip() and not _CHATTER.match(line):
                print(line, end="", flush=True)
    if dvc.returncode:
        print(f"\n{experiment}: some stages failed, as said above; `make {experiment}` runs what is left", flush=True)
        return 1
    print(f"\n{experiment}: all {len(graph.stages)} stages are up to date")
    return 0


@contextlib.contextmanager
def _dvc(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A DVC process, in a group of its own that has ended when the block has.

    Interrupted itself, DVC would take the stage for a failed one and go on with the next. So it is stopped from here,
    with SIGTERM, at which training saves where it is. Progress bars are on stderr, and reach the terminal as they are.
    """
    dvc = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "sh", sys.executable, "-m", "dvc", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    try:
        yield dvc
    except BaseException:
        os.killpg(dvc.pid, signal.SIGTERM)
        raise
    finally:
        dvc.communicate()  # until nobody holds its output


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all stages are up to date afterwards, 1 where some failed, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.experiments",
        description="Run what is stale of an experiment, and of the pipeline before it, with `dvc repro --keep-going`.",
        epilog="Interrupting is safe: the next run goes on with what is left, a training from its last checkpoint.",
    )
    parser.add_argument("experiment", choices=("paper", "ablations"), help="folder under experiments/")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(options.experiment)
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; `make {options.experiment}` goes on with what is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
