"""`blsp status`: how the workspace stands, at a glance: stages, figures, the model in the registry, the last runs."""

import argparse
import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from blsp import markdown
from blsp.errors import BlspError
from blsp.evaluation import report
from blsp.files import read_json
from blsp.params import PARAMS_FILE, load_params
from flows.dvc_graph import Graph, read_graph
from flows.git import asked
from flows.run_params import STATE

EVALUATION = Path("reports/evaluation.json")
PAGES = {  # to open in a browser
    "reports/answers.html": "every system's answers, to read and to hear",
    "reports/continuations.html": "what the LLM wrote",
    "reports/data_docs/index.html": "what Great Expectations found in the data",
}
COMPARED = ("speech", "cascade", "text")
RUNS = 5


def status() -> str:
    """What there is to say, in words and small tables. What cannot be asked is said in its place, with the reason."""
    parts = {
        "workspace": _workspace,
        "stages": lambda: stages(read_graph()),
        "figures": figures,
        "registry": _registry,
        "runs": _runs,
    }
    return "\n\n".join(f"{title}\n{_indented(_or_why(part))}" for title, part in parts.items())


def stages(graph: Graph) -> str:
    """A line a stage: whether `dvc repro` would run it, and because of what."""
    stale: dict[str, str] = {}
    for stage in graph.stages:  # upstream first
        before = [name for name in stage.upstream if name in stale]
        if not stage.unchanged:
            stale[stage.name] = "stale: its code, values or inputs changed, or what it wrote is not here"
        elif before:
            stale[stage.name] = f"stale: comes after {', '.join(before)}"
    rows = [[stage.name, stale.get(stage.name, "up to date")] for stage in graph.stages]
    return markdown.table(["stage", "state"], rows)


def figures() -> str:
    """The last evaluation's figure of each task, speech beside cascade and text."""
    if not EVALUATION.is_file():
        return f"{EVALUATION}: not there yet; `make demo` or `dvc repro` makes it"
    evaluation = read_json(EVALUATION)
    systems: dict[str, dict[str, dict[str, Any]]] = evaluation["systems"]
    order = [task["name"] for task in evaluation.get("tasks", ())]  # as in the report: unheard languages last
    speech = sorted(systems["speech"].items(), key=lambda one: order.index(one[0]) if one[0] in order else len(order))
    rows = [
        [f"{task} ({metric})", *(_cell(systems.get(name, {}).get(task, {}).get(metric)) for name in COMPARED)]
        for task, metrics in speech
        for metric in metrics
    ]
    lines = [markdown.table(["task", *COMPARED], rows)]
    return "\n".join([*lines, *(f"{page}: {about}" for page, about in PAGES.items() if Path(page).is_file())])


def holder() -> str | None:
    """Who has the workspace at this moment; None where nobody has."""
    lock = STATE / "lock"
    if not lock.is_file():
        return None
    with lock.open(encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found = read_json(lock)
            return f"{found['by']} (process {found['process']} on {found['host']}, since {found['since']})"
    return None


def _workspace() -> str:
    commit = asked("rev-parse", "--short=12", "HEAD") or "no commit"
    taken = holder()
    return f"{Path.cwd()} at {commit}\n" + (f"at work: {taken}" if taken else "nothing is running here")


def _registry() -> str:
    from blsp.registry import overview
    from blsp.tracking import enabled
    from blsp.tracking.pages import FOR_TRAINING, pages
    from blsp.tracking.store import DEFAULT_URI

    if not enabled():
        return "BLSP_TRACKING=off"
    params = load_params(PARAMS_FILE)
    if address := pages():
        to_see = f"{address}/#/models/{params.promote.model_name}{FOR_TRAINING}"
    else:  # by the variable's name, for an address of a database holds its password
        store = '"$MLFLOW_TRACKING_URI"' if os.environ.get("MLFLOW_TRACKING_URI") else DEFAULT_URI
        to_see = f"mlflow ui --backend-store-uri {store}"
    return f"{overview(params)}\nto see it: {to_see}"


def _runs() -> str:
    """The last runs that Prefect's server knows; a temporary server is not started for it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not settings.api.url:
        return "no Prefect server is set: PREFECT_API_URL=http://127.0.0.1:4200/api names one"
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(limit=RUNS, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
        names = {run.flow_id: client.read_flow(run.flow_id).name for run in runs}
    rows = [
        [
            f"{run.start_time or run.expected_start_time:%Y-%m-%d %H:%M}",
            names[run.flow_id],
            run.state_name or "",
            ((run.state.message if run.state else "") or "").partition("\n")[0],
        ]
        for run in runs
    ]
    shown = markdown.table(["when (UTC)", "flow", "state", ""], rows) if rows else "none yet"
    return f"{shown}\nto see them: {settings.ui_url}/runs" if settings.ui_url else shown


def _or_why(part: Callable[[], str]) -> str:
    """What the part says, or why it cannot: one of them being away hides none of the others."""
    import httpx

    try:
        return part()
    except (BlspError, OSError, httpx.HTTPError) as error:
        return f"cannot be asked: {str(error) or type(error).__name__}"


def _cell(figure: dict[str, Any] | None) -> str:
    return "" if figure is None else report.cell(figure)


def _indented(text: str) -> str:
    def lines() -> Iterator[str]:
        for line in text.splitlines():
            yield f"  {line}".rstrip()

    return "\n".join(lines())


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where the working folder is no workspace."""
    parser = argparse.ArgumentParser(
        prog="blsp status",
        description=(
            "Say how the workspace stands: who works in it, which stages of dvc.yaml are stale and why, the last "
            "evaluation's figures, champion and challenger in MLflow, and the last runs in Prefect."
        ),
        epilog="Nothing is changed and no server is started. Servers are found through MLFLOW_TRACKING_URI and "
        "PREFECT_API_URL; what is away is said in its place.",
    )
    parser.parse_args(arguments)
    if not os.path.isfile("dvc.yaml"):
        print(f"blsp status: {Path.cwd()} has no dvc.yaml; go to the project's folder", file=sys.stderr)
        return 1
    print(status())
    return 0


if __name__ == "__main__":
    sys.exit(main())
