"""What Prefect, DVC and MLflow cost beside the stages they run, and how long a scheduled run with nothing to do takes.

    python -m benchmarks.operations [--set miniature.llm.steps=100 ...]

Two clones of this commit, each from nothing, one after the other:

bare: the commands of dvc.yaml as processes and nothing else, each begun as soon as those before it have ended, as the
flow does. No DVC, no Prefect, no MLflow.

flow: `python -m flows.pipeline`, with a temporary Prefect server (its start is in the figure) and MLflow on SQLite.

Then, in the flow's clone, a Prefect server that stays, the deployments and a worker: `--scheduled` runs of
`pipeline/pipeline` with nothing changed, from the time they were due to their end. The last line is JSON; what it said,
and when, is in benchmarks/LOG.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from blsp.files import write_text
from blsp.params import PARAMS_FILE
from blsp.params.overrides import with_overrides
from flows.local_server import ensure_server

CODE = Path(__file__).resolve().parents[1]
SCHEDULED_LIMIT_S = 600.0


def clone(folder: Path, overrides: list[str]) -> None:
    """Nothing; `folder` is a clone of this commit that has computed nothing, with these values committed."""
    _run("git", "clone", "--quiet", str(CODE), str(folder), at=CODE)
    (folder / "dvc.lock").unlink(missing_ok=True)
    os.chdir(folder)
    write_text(Path(PARAMS_FILE), with_overrides(Path(PARAMS_FILE).read_text(encoding="utf-8"), None, overrides))
    who = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org")
    _run("git", *who, "commit", "--quiet", "--all", "--message", "What is timed", at=folder)


def bare(folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of all stages, and of each, as processes alone."""
    graph = json.loads(_run(sys.executable, "-m", "flows.dvc_graph", at=folder))["stages"]
    began_s = time.perf_counter()
    seconds: dict[str, float] = {}
    with ThreadPoolExecutor(len(graph)) as pool:
        ended = {}

        def run(stage: dict[str, list[str]], name: str) -> None:
            for other in stage["upstream"]:
                ended[other].result()
            stage_began_s = time.perf_counter()
            _run(sys.executable, "-m", "blsp", name, at=folder, BLSP_TRACKING="off")
            seconds[name] = time.perf_counter() - stage_began_s
            print(f"bare {name}: {seconds[name]:.1f} s", flush=True)

        for stage in graph:  # upstream first
            ended[stage["name"]] = pool.submit(run, stage, stage["name"])
        for future in ended.values():
            future.result()
    return time.perf_counter() - began_s, seconds


def flow(folder: Path) -> float:
    """Seconds of the pipeline's flow, from its start in a shell to its end there."""
    began_s = time.perf_counter()
    _run(sys.executable, "-m", "flows.pipeline", at=folder)
    return time.perf_counter() - began_s


@contextmanager
def worker(folder: Path) -> Iterator[None]:
    """A Prefect server with this clone's deployments, and a worker whose workspace the clone is."""
    ensure_server()
    from prefect.settings import get_current_settings

    at_server = {"PREFECT_API_URL": str(get_current_settings().api.url), "BLSP_WORKSPACE": str(folder)}
    _run(sys.executable, "-m", "flows.deploy", "--repository", str(folder), at=folder, **at_server)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "blsp"]
    environment = _environment(folder, at_server)
    del environment["PYTHONPATH"]  # the code is what it clones
    with (folder.parent / "worker.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def scheduled() -> float:
    """Seconds from when a run of the pipeline's deployment was due to its end. Exits where it did not complete."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("pipeline/pipeline")
        run = client.create_flow_run_from_deployment(deployment.id)
        limit_s = time.monotonic() + SCHEDULED_LIMIT_S
        while (run.state is None or not run.state.is_final()) and time.monotonic() < limit_s:
            time.sleep(0.5)  # asked, not waited for: the event of a run's end did not always come
            run = client.read_flow_run(run.id)
    if run.state is None or not run.state.is_completed() or run.end_time is None or run.expected_start_time is None:
        sys.exit(f"the scheduled run did not complete: {run.state}")
    return (run.end_time - run.expected_start_time).total_seconds()


def _environment(folder: Path, more: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    scratch = str(folder.parent / f"{folder.name}-scratch")
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "BLSP_SCRATCH": scratch, **more}


def _run(*command: str, at: Path, **more: str) -> str:
    done = subprocess.run(command, cwd=at, env=_environment(at, more), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of params.yaml")
    parser.add_argument("--scheduled", type=int, default=3, metavar="N", help="scheduled runs timed (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="operations-") as name:
        places = {kind: Path(name) / kind for kind in ("bare", "flow")}
        clone(places["bare"], options.set)
        bare_s, stages_s = bare(places["bare"])
        clone(places["flow"], options.set)
        flow_s = flow(places["flow"])
        print(f"bare {bare_s:.1f} s, flow {flow_s:.1f} s: {flow_s / bare_s - 1:+.1%}", flush=True)
        with worker(places["flow"]):
            scheduled_s = [scheduled() for _ in range(options.scheduled)]
        print(
            json.dumps(
                {
                    "bare_s": round(bare_s, 1),
                    "flow_s": round(flow_s, 1),
                    "overhead": round(flow_s / bare_s - 1, 4),
                    "stages_s": {name: round(value, 1) for name, value in stages_s.items()},
                    "scheduled_s": [round(value, 1) for value in scheduled_s],
                }
            )
        )
        os.chdir(CODE)


if __name__ == "__main__":
    main()
