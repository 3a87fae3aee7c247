"""DVC's graph as plain records: the one place that touches DVC's internals.

`python -m flows.dvc_graph [STAGE ...]` prints the same as JSON, and `--restore-outputs` restores outputs. Flows call
it that way, so that DVC's locks, logging and long hashing stay out of their process and its event loop.
"""

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blsp.errors import BlspError

if TYPE_CHECKING:
    from dvc.repo import Repo

RESTORE = "--restore-outputs"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml and what DVC says about it at this moment."""

    name: str
    upstream: tuple[str, ...]  # stages that must end first
    inputs: tuple[str, ...]  # outputs of those stages that it reads, as paths from the working folder
    metrics: tuple[str, ...]  # metric files, paths likewise
    stored: tuple[str, ...]  # outputs that DVC keeps, and pushes
    committed: tuple[str, ...]  # outputs that git keeps (`cache: false`)
    sources: tuple[str, ...]  # dependencies in this repository that no stage writes: code, settings, raw data
    unchanged: bool  # `dvc repro` would skip it, as long as nothing upstream runs
    retries: int = 0  # further attempts after a failure
    retry_delay_s: float = 0.0  # s between attempts
    timeout_s: float | None = None  # s an attempt may take; None: no limit
    tags: tuple[str, ...] = ()  # Prefect tags, for concurrency limits such as one run a GPU


@dataclasses.dataclass(frozen=True)
class Graph:
    """The stages to run, upstream before downstream, and whether DVC has a default remote to pull from."""

    stages: tuple[Stage, ...]
    remote: bool


def read_graph(targets: Sequence[str] = ()) -> Graph:
    """DVC's active graph up to `targets` (all of dvc.yaml where none is named), in the working folder.

    Raises BlspError where DVC cannot read the project or a stage's `meta` is wrong.
    """
    from dvc.dvcfile import PROJECT_FILE
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    try:
        with Repo(_wait_for_lock=True) as repo:
            with repo.lock:
                _forget_dead_lock_holders(repo)
            with lock_repo(repo):
                graph = get_active_graph(repo.index.graph)
                order = plan_repro(graph, collect_stages(repo, targets or [PROJECT_FILE]))
                remote = bool(repo.config["core"].get("remote"))
                return Graph(tuple(_record(graph, stage, remote) for stage in order), remote)
    except DvcException as error:
        causes = [str(error)]
        while (cause := error.__cause__) is not None and str(cause) not in causes:
            causes.append(str(cause))
            error = cause
        raise BlspError(f"DVC cannot read the pipeline: {': '.join(causes)}") from error


def restore_outputs() -> None:
    """Nothing; afterwards the outputs in the working folder are those that dvc.lock names, where DVC's cache has them.

    Run it in a process of its own, as `read_graph`. Raises BlspError where DVC fails.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(_wait_for_lock=True) as repo:
            with repo.lock:
                _forget_dead_lock_holders(repo)
            repo.checkout(force=True, allow_missing=True)
    except DvcException as error:
        raise BlspError(f"DVC cannot restore outputs: {error}") from error


async def load_graph(targets: Sequence[str] = ()) -> Graph:
    """What `read_graph` returns, read by a process of its own. Raises BlspError as it does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flows.dvc_graph", *targets),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise BlspError(errors.decode(errors="replace").strip())
    record = json.loads(output)
    return Graph(tuple(_stage(**stage) for stage in record["stages"]), record["remote"])


def _stage(**fields: Any) -> Stage:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Stage(**values)


def _record(graph: Any, stage: Any, remote: bool) -> Stage:
    upstream = sorted(graph.successors(stage), key=lambda other: other.addressing)
    produced = {out.fs_path for other in upstream for out in other.outs}
    return Stage(
        name=stage.addressing,
        upstream=tuple(other.addressing for other in upstream),
        inputs=tuple(os.path.relpath(dep.fs_path) for dep in stage.deps if dep.fs_path in produced),
        metrics=tuple(os.path.relpath(out.fs_path) for out in stage.outs if out.metric),
        stored=tuple(os.path.relpath(out.fs_path) for out in stage.outs if out.use_cache),
        committed=tuple(os.path.relpath(out.fs_path) for out in stage.outs if not out.use_cache),
        sources=tuple(
            os.path.relpath(dep.fs_path) for dep in stage.deps if dep.is_in_repo and dep.fs_path not in produced
        ),
        # The very question `dvc repro` asks before it skips a stage.
        unchanged=not stage.changed(allow_missing=remote, upstream=upstream),
        **_run_settings(stage.addressing, stage.meta or {}),
    )


def _run_settings(name: str, meta: dict[str, Any]) -> dict[str, Any]:
    """The keys of a stage's free-form `meta:` that say how to run it; other keys are the author's own."""

    def number(key: str, kinds: Any, least: float) -> Any:
        value = meta[key]
        if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
            kind = "a whole number" if kinds is int else "a number"
            raise BlspError(f"dvc.yaml: stages.{name}.meta.{key} is {value!r}: must be {kind}, {least} or more.")
        return value

    settings: dict[str, Any] = {}
    if "retries" in meta:
        settings["retries"] = number("retries", int, 0)
    if "retry_delay_s" in meta:
        settings["retry_delay_s"] = number("retry_delay_s", (int, float), 0)
    if meta.get("timeout_s") is not None:
        settings["timeout_s"] = number("timeout_s", (int, float), 1)
    if "tags" in meta:
        tags = meta["tags"]
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise BlspError(f"dvc.yaml: stages.{name}.meta.tags is {tags!r}: it must be a list of words.")
        settings["tags"] = tuple(tags)
    return settings


def _forget_dead_lock_holders(repo: "Repo") -> None:
    """Nothing; afterwards DVC's rwlock file names only processes that still run. Call under the repo's lock.

    DVC forgets a killed process by itself, but not where its number has since gone to another process, as it
    does in containers, nor where the kill left the file half written: both ask the user to delete it by hand.
    """
    from dvc.rwlock import RWLOCK_FILE, RWLockFileCorruptedError, RWLockFileFormatError, _edit_rwlock

    if repo.tmp_dir is None or not os.path.exists(os.path.join(repo.tmp_dir, RWLOCK_FILE)):
        return
    hardlink = repo.config["core"].get("hardlink_lock", False)
    try:
        with _edit_rwlock(repo.tmp_dir, repo.fs, hardlink) as lock:
            lock["write"] = {path: holder for path, holder in lock["write"].items() if _holds(holder)}
            readers = {path: list(filter(_holds, holders)) for path, holders in lock["read"].items()}
            lock["read"] = {path: holders for path, holders in readers.items() if holders}
    except (RWLockFileCorruptedError, RWLockFileFormatError):
        os.unlink(os.path.join(repo.tmp_dir, RWLOCK_FILE))


def _holds(holder: dict[str, Any]) -> bool:
    """Whether the process that took a lock (its number and command line) still runs."""
    import psutil

    try:
        command = psutil.Process(holder["pid"]).cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    except psutil.AccessDenied:
        return True
    # DVC notes sys.argv; the first word of that may be spelt otherwise in the process table.
    return " ".join(command).endswith(holder["cmd"].partition(" ")[2])


if __name__ == "__main__":
    try:
        if sys.argv[1:] == [RESTORE]:
            restore_outputs()
        else:
            print(json.dumps(dataclasses.asdict(read_graph(sys.argv[1:])), indent=2))
    except BlspError as problem:
        sys.exit(str(problem))
