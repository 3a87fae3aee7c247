"""The flow over a toy project, a diamond `a -> b, c -> d` of real stages, with DVC and a Prefect server."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from dvc.repo import Repo
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.settings import get_current_settings

import flows.pipeline
from blsp.check import Findings
from blsp.errors import BlspError
from flows import artifacts
from flows.console import end_on_signals
from flows.dvc_graph import Graph, Stage, read_graph
from flows.pipeline import pipeline

RUN = "http://mlflow.example/#/experiments/1/runs/abc"

STAGES: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}

# What a stage does is in its section of params.yaml (JSON is YAML too).
SCRIPT = """
import json, os, sys, time
name, *inputs = sys.argv[1:]
p = json.load(open("params.yaml"))[name]
open(f"{name}.attempts", "a").write("x")
open(f"{name}.pid", "w").write(str(os.getpid()))
print("hello from", name)
if "run" in p: print("recorded in MLflow:", p["run"])
if "meet" in p:  # both of a pair must be running at once
    until = time.time() + 60
    while not os.path.exists(p["meet"] + ".pid"):
        assert time.time() < until, "the other stage never started"
        time.sleep(0.05)
if p.get("bar"):
    from tqdm import tqdm
    for _ in tqdm(range(4), desc="steps"): time.sleep(p["bar"])
if p.get("hang_once") and os.path.getsize(f"{name}.attempts") == 1: time.sleep(600)
if "fail" in p: sys.exit(p["fail"])
if name == "d": open("d.html", "w").write("<title>d</title>")
open(f"{name}.txt", "w").write(str(p["x"]) + "".join(open(i).read() for i in inputs))
json.dump({"loss": {"dev": p["x"] / 2}, "note": "text"}, open(f"{name}.json", "w"))
"""

COMMAND = [sys.executable, "-m", "flows.pipeline"]

Built = tuple[Path, State[Any], dict[str, str]]


def write_dvc_yaml(meta: dict[str, Any] | None = None) -> None:
    stages = {}
    for name, upstream in STAGES.items():
        inputs = [f"{other}.txt" for other in upstream]
        stages[name] = {
            "cmd": " ".join([sys.executable, "stage.py", name, *inputs]),
            "deps": ["stage.py", *inputs],
            "params": [name],
            "outs": [f"{name}.txt", *(["d.html"] if name == "d" else [])],
            "metrics": [{f"{name}.json": {"cache": False}}],
            "meta": {"tags": ["toy"], **(meta or {}).get(name, {})},
        }
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))


def write_params(**changed: dict[str, Any]) -> None:
    first: dict[str, dict[str, Any]] = {"a": {"bar": 0.05}, "b": {"meet": "c"}, "c": {"meet": "b"}, "d": {"run": RUN}}
    Path("params.yaml").write_text(json.dumps({name: {"x": 1, **p} for name, p in (first | changed).items()}))


async def flow_state(targets: list[str] | None = None) -> State[Any]:
    return await pipeline(targets, return_state=True)


def run_pipeline(targets: list[str] | None = None) -> tuple[State[Any], dict[str, str]]:
    """The flow's state, and the name of the state of each stage up to `targets` as the server tells it."""
    state = asyncio.run(flow_state(targets))
    assert state.state_details.flow_run_id is not None
    this_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    stages = {"b": 2, "c": 2}[targets[0]] if targets else len(STAGES)
    with get_client(sync_client=True) as client:
        for _ in range(200):  # the server learns of task runs with a delay
            runs = client.read_task_runs(flow_run_filter=this_run)
            final = {run.name: run.state_name or "" for run in runs if run.end_time}
            if len(final) == stages:
                break
            time.sleep(0.1)
    return state, final


def artifact(key: str) -> Any:
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return json.loads(found.data) if found.type == "table" else found.data


def processes_here() -> list[str]:
    """Command lines of the processes that run in the working folder, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.cwd() == os.getcwd() and process.status() != "zombie":
                found.append(" ".join(process.cmdline()))
    return found


def with_server() -> dict[str, str]:
    """The environment in which the command talks to the tests' server."""
    return {**os.environ, "PREFECT_API_URL": str(get_current_settings().api.url)}


def wait_until(happened: Callable[[], Any], limit_s: float = 60) -> None:
    until_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < until_s
        time.sleep(0.05)


@pytest.fixture(scope="module")
def built(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The toy project after its first run, which the tests copy, and how that run ended."""
    root = tmp_path_factory.mktemp("toy")
    with contextlib.chdir(root):
        subprocess.run(["git", "init", "--quiet", "--initial-branch", "main"], check=True)
        Repo.init(".").close()
        Path(".dvc/config").write_text("[core]\nanalytics = false\nautostage = true\ncheck_update = false\n")
        Path("stage.py").write_text(SCRIPT)
        write_dvc_yaml()
        write_params()
        state, states = run_pipeline()
    return root, state, states


@pytest.fixture
def project(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project after its first run as the working folder, in which no process may be left."""
    shutil.copytree(built[0], tmp_path / "toy", symlinks=True)
    monkeypatch.chdir(tmp_path / "toy")
    for name in STAGES:
        for path in Path().glob(f"{name}.[ap]*"):
            path.unlink()
    yield tmp_path / "toy"
    assert processes_here() == []


def test_first_run_completes_every_stage_and_shows_progress_and_metrics(built: Built) -> None:
    _, state, states = built  # that b and c, which wait for each other, ended shows that they ran together
    assert state.is_completed()
    assert states == dict.fromkeys(STAGES, "Completed")
    assert artifact("a-progress") == 100
    assert artifact("d-metrics") == [{"metric": "loss.dev", "value": 0.5}]


def test_a_stage_links_to_its_run_in_mlflow_and_names_its_pages(built: Built) -> None:
    links = artifact("d-mlflow-run")
    assert (
        f"]({RUN}?" in links
        and f"]({RUN}/model-metrics?" in links
        and f"]({RUN}/artifacts/data_docs/index.html?" in links
    )
    assert "- `d.html`" in artifact("d-pages")
    with get_client(sync_client=True) as client:
        keys = {one.key for one in client.read_artifacts()}
    assert "a-mlflow-run" not in keys and "a-pages" not in keys


def test_nothing_changed_skips_every_stage_and_leaves_what_a_shell_leaves(project: Path) -> None:
    lock = Path("dvc.lock").read_bytes()
    state, states = run_pipeline()
    assert state.is_completed()
    assert states == dict.fromkeys(STAGES, "Skipped")
    shell = subprocess.run([sys.executable, "-m", "dvc", "repro"], check=True, capture_output=True, text=True)
    assert "Data and pipelines are up to date" in shell.stdout
    assert Path("dvc.lock").read_bytes() == lock


def test_changed_value_reruns_only_what_depends_on_it(project: Path) -> None:
    write_params(c={"x": 5})
    _, states = run_pipeline()
    assert states == {"a": "Skipped", "b": "Skipped", "c": "Completed", "d": "Completed"}
    assert Path("d.txt").read_text() == "11151"
    assert all(stage.unchanged for stage in read_graph().stages)
    write_params()
    _, states = run_pipeline(["c"])
    assert states == {"a": "Skipped", "c": "Cached"}
    assert Path("c.txt").read_text() == "11"


def test_failing_stage_is_tried_again_then_named_and_nothing_after_it_runs(project: Path) -> None:
    write_dvc_yaml({"b": {"retries": 1}})
    write_params(b={"fail": "row 7 of corpus.jsonl has no text"}, c={"x": 2})
    state, states = run_pipeline()
    assert state.is_failed()
    assert state.message == "stage 'b' failed: row 7 of corpus.jsonl has no text"
    assert states == {"a": "Skipped", "b": "Failed", "c": "Completed", "d": "NotRun"}
    assert len(Path("b.attempts").read_text()) == 2
    assert not Path("d.attempts").exists()


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])  # they report the death of a command differently
def test_killed_stage_fails_and_the_next_run_is_right(
    project: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("SHELL", shell)
    write_params(b={"x": 2, "hang_once": True})

    async def kill_b_once_it_runs() -> State[Any]:
        running = asyncio.create_task(flow_state(["b"]))
        while not (Path("b.pid").exists() and Path("b.pid").read_text()):
            assert not running.done()
            await asyncio.sleep(0.05)
        os.kill(int(Path("b.pid").read_text()), signal.SIGKILL)
        return await running

    state = asyncio.run(kill_b_once_it_runs())
    assert state.is_failed()
    assert state.message == "stage 'b' failed: its process was killed by signal 9 (SIGKILL)"
    assert not Path("b.txt").exists()
    again = subprocess.run([*COMMAND, "b"], env=with_server(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert Path("b.txt").read_text() == "21"


def test_killed_flow_takes_its_stage_along_and_leaves_no_lock(project: Path) -> None:
    write_params(b={"x": 2, "hang_once": True})
    flow = subprocess.Popen([*COMMAND, "b"], env=with_server())
    try:
        wait_until(lambda: Path("b.pid").exists())
    finally:
        flow.kill()
        flow.wait()
    wait_until(lambda: processes_here() == [], limit_s=10)
    assert json.loads(Path(".dvc/tmp/rwlock").read_text())["write"]  # DVC was killed too, holding locks
    assert {stage.name: stage.unchanged for stage in read_graph(["b"]).stages} == {"a": True, "b": False}
    assert not any(json.loads(Path(".dvc/tmp/rwlock").read_text()).values())


@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN])  # in front, in the background
def test_cancelled_flow_stops_its_stage(project: Path, interrupts: Any) -> None:
    write_params(b={"x": 2, "hang_once": True})

    async def cancel_once_b_runs() -> None:
        running = asyncio.create_task(flow_state(["b"]))
        while not Path("b.pid").exists():
            assert not running.done()
            await asyncio.sleep(0.05)
        running.cancel()
        await running

    before = signal.signal(signal.SIGINT, interrupts)
    try:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cancel_once_b_runs())
    finally:
        signal.signal(signal.SIGINT, before)
    assert processes_here() == []
    assert not any(json.loads(Path(".dvc/tmp/rwlock").read_text()).values())  # interrupted, not killed


def test_hangup_ends_the_flow_unless_nohup_had_it_ignored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        end_on_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        end_on_signals()
        with pytest.raises(SystemExit, match="129"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_stage_over_its_time_limit_is_stopped(project: Path) -> None:
    write_dvc_yaml({"b": {"timeout_s": 1}})
    write_params(b={"x": 2, "hang_once": True})
    state, states = run_pipeline(["b"])
    assert states == {"a": "Skipped", "b": "TimedOut"}
    assert state.message == "stage 'b' failed: Task run exceeded timeout of 1.0 second(s)"


def test_lock_of_a_dead_process_is_forgotten_although_its_number_lives_on(project: Path) -> None:
    holder = {"pid": os.getpid(), "cmd": "/old/dvc repro b"}
    Path(".dvc/tmp/rwlock").write_text(json.dumps({"write": {str(project / "b.txt"): holder}, "read": {}}))
    assert all(stage.unchanged for stage in read_graph().stages)


def test_half_written_lock_file_is_forgotten(project: Path) -> None:
    Path(".dvc/tmp/rwlock").write_text('{"write": {"/x')
    assert all(stage.unchanged for stage in read_graph().stages)


def test_unknown_stage_and_wrong_meta_are_refused_in_one_line(project: Path) -> None:
    state = asyncio.run(flow_state(["e"]))
    assert state.is_failed()
    assert state.message == "DVC cannot read the pipeline: Stage 'e' not found inside 'dvc.yaml' file"
    write_dvc_yaml({"c": {"retries": "many"}})
    with pytest.raises(ValueError, match=r"stages\.c\.meta\.retries is 'many'.*whole number"):
        read_graph()


def test_fresh_clone_with_a_remote_pulls_only_what_a_stale_stage_needs(project: Path) -> None:
    with Path(".dvc/config").open("a") as config:
        config.write(f"remote = store\n['remote \"store\"']\nurl = {project.parent / 'store'}\n")
    with Repo() as repo:
        repo.push()
    shutil.rmtree(".dvc/cache")
    for name in STAGES:
        Path(f"{name}.txt").unlink()
    write_params(c={"x": 5})
    _, states = run_pipeline(["c"])
    assert states == {"a": "Skipped", "c": "Completed"}
    assert Path("c.txt").read_text() == "51"
    assert not Path("b.txt").exists()


def test_stage_that_ends_while_its_progress_is_being_published_has_one_artifact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, float]] = []

    async def create(percent: float, *_: Any) -> str:
        calls.append(("create", percent))
        await asyncio.sleep(0.2)
        return "id"

    async def update(_: str, percent: float, *__: Any) -> None:
        calls.append(("update", percent))

    monkeypatch.setattr(artifacts, "acreate_progress_artifact", create)
    monkeypatch.setattr(artifacts, "aupdate_progress_artifact", update)
    monkeypatch.setattr(artifacts, "PROGRESS_EVERY_S", 0.05)

    async def stage_ends_meanwhile() -> None:
        progress = artifacts.Progress("train")
        progress.see("steps", 10)
        publisher = asyncio.create_task(progress.publish())
        await asyncio.sleep(0.15)
        progress.see("steps", 100)
        progress.end()
        await publisher

    asyncio.run(stage_ends_meanwhile())
    assert calls == [("create", 10), ("update", 100)]


def test_metrics_are_rows_of_short_numbers_and_a_figure_has_its_interval_beside_it() -> None:
    wer = {"value": 0.0060766238, "low": 0.00301, "high": 1.0, "n": 400, "signature": "seed 1"}
    nested = {"speech": {"asr": {"wer": wer}, "steps": [1, 2]}, "ok": True, "n": 108848, "loss": 0.122107, "note": "x"}
    assert list(artifacts.metric_rows(nested)) == [
        {"metric": "speech.asr.wer", "value": 0.006077, "low": 0.00301, "high": 1.0},
        {"metric": "n", "value": 108848},
        {"metric": "loss", "value": 0.1221},
    ]


def test_a_server_that_is_set_and_away_is_one_clear_line(project: Path) -> None:
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("PREFECT_API_URL is http://127.0.0.1:9/api, and no Prefect server answers there")
    assert done.stderr.count("\n") == 1


def test_what_the_check_finds_stops_the_run_before_any_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("corpus", (), (), (), (), (), (), unchanged=False)

    async def graph(targets: object) -> Graph:
        return Graph((stage,), remote=False)

    found = Findings(facts=["6 rows"], warnings=["rows name no licence"], errors=["no row for test: name `split`"])
    said: list[str] = []
    log = SimpleNamespace(info=lambda *what: said.append(what[1]), warning=lambda *what: said.append(what[1]))
    monkeypatch.setattr(flows.pipeline, "load_graph", graph)
    monkeypatch.setattr(flows.pipeline, "get_run_logger", lambda: log)
    monkeypatch.setattr(flows.pipeline, "load_params", lambda: None)
    monkeypatch.setattr("blsp.check.check", lambda params: found)
    with pytest.raises(BlspError, match="1 thing to mend before a run:\n  no row for test: name `split`"):
        asyncio.run(flows.pipeline._run_stages(()))
    assert said == ["6 rows", "rows name no licence"]
