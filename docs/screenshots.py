"""Pictures of the pages that a person sees, for docs/pages.md.

    python -m docs.screenshots [--set KEY=VALUE ...]

Run it in a workspace whose model is promoted (`make demo`), where Chromium or Chrome is installed. It starts a Prefect
server with an empty database and an MLflow server over this workspace's mlflow.db, both on loopback, runs the pipeline
once, and takes the pictures with the browser. With nothing changed all stages are skipped; `--set` gives the run values
of its own, as `python -m flows.pipeline` takes them. The run's values stay in params.yaml, as of any run.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from blsp.errors import BlspError
from blsp.params import PARAMS_FILE, load_params
from blsp.tracking.pages import FOR_TRAINING
from infra.processes import Server, start, stop, wait_until_healthy

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
IMAGES = Path("docs/images")
WIDTH_PX, HEIGHT_PX = 1200, 800
APPEAR_LIMIT_S = 120  # s for a page to show what it is about; two busy cores take most of it
SETTLE_S = 4  # s that charts and timelines then move
START_LIMIT_S = 180
# MLflow's pages open its assistant on the first visit.
SET_UP = 'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")'


@dataclasses.dataclass(frozen=True)
class Shot:
    """One picture: of which page, and the words whose appearance says that the page is there."""

    name: str
    url: str
    shows: str
    height_px: int = HEIGHT_PX
    tab: str | None = None
    """Of the page, to open first."""
    ours: bool = False
    """Of a page that this project writes: then an error in the browser's console is ours too, and raised."""


def find_browser() -> str:
    """The path of a browser. Raises BlspError where none is installed."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise BlspError(f"No browser: none of {', '.join(BROWSERS)} is on PATH; on Debian, `apt-get install chromium`.")


def take(shots: Sequence[Shot], folder: Path) -> list[Path]:
    """The PNG files of the pictures, in `folder`. Raises BlspError for a page that does not show what it should."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium's needs a user other than root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=sandbox)
        context = browser.new_context(color_scheme="light", locale="en-GB", timezone_id="UTC")
        context.add_init_script(f"if (location.protocol.startsWith('http')) {{{SET_UP}}}")
        taken = [_take(context, shot, folder) for shot in shots]
        browser.close()
    return taken


def _take(context: "BrowserContext", shot: Shot, folder: Path) -> Path:
    from playwright.sync_api import Error

    said: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    page.set_viewport_size({"width": WIDTH_PX, "height": shot.height_px})
    path = folder / f"{shot.name}.png"
    try:
        page.goto(shot.url, wait_until="domcontentloaded", timeout=APPEAR_LIMIT_S * 1000)
        if shot.tab:
            page.get_by_text(shot.tab, exact=True).first.click(timeout=APPEAR_LIMIT_S * 1000)
        page.get_by_text(shot.shows).first.wait_for(timeout=APPEAR_LIMIT_S * 1000)
        page.wait_for_timeout(SETTLE_S * 1000)
        if shot.ours and said:
            raise BlspError(f"{shot.url}: the browser's console says: {said[0]}")
        page.screenshot(path=path)
    except Error as error:
        raise BlspError(f"{shot.url} does not show {shot.shows!r}: {str(error).splitlines()[0]}") from error
    page.close()
    return path


@contextlib.contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """The addresses of a new Prefect server and of an MLflow server over ./mlflow.db, while the block lasts."""
    ports = _free_port(), _free_port()
    prefect, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        for name in ("logs", "run"):
            (state / name).mkdir()
        both = (
            Server(
                "prefect",
                (sys.executable, "-m", "prefect", "server", "start", "--host=127.0.0.1", f"--port={ports[0]}"),
                {"PREFECT_HOME": folder, "PREFECT_UI_API_URL": f"{prefect}/api", "PREFECT_API_URL": f"{prefect}/api"},
                ports[0],
                f"{prefect}/api/health",
            ),
            Server(
                "mlflow",
                (sys.executable, "-m", "mlflow", "server", "--workers=1", "--host=127.0.0.1", f"--port={ports[1]}"),
                {
                    "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{Path('mlflow.db').resolve()}",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                },
                ports[1],
                f"{mlflow}/health",
            ),
        )
        try:
            for server in both:
                start(server, state)
            for server in both:
                wait_until_healthy(server, state, START_LIMIT_S)
            yield prefect, mlflow
        finally:
            for server in both:
                stop(server, state)


def of_prefect(address: str) -> list[Shot]:
    """The last run of the pipeline there, and the largest table of metrics that it left."""

    def asked(what: str) -> list[dict[str, Any]]:
        return list(httpx.post(f"{address}/api/{what}/filter", json={}, timeout=60).raise_for_status().json())

    (run,) = asked("flow_runs")
    tables = [one for one in asked("artifacts") if one["type"] == "table"]
    shots = [Shot("prefect-run", f"{address}/runs/flow-run/{run['id']}", run["name"], 1100, "Artifacts")]
    if tables:
        table = max(tables, key=lambda one: len(one["data"]))
        shots.append(Shot("prefect-metrics", f"{address}/artifacts/artifact/{table['id']}", "Items"))
    return shots


def of_mlflow(address: str, model: str) -> list[Shot]:
    """The champion: its run, its curves, and its version with the card. Raises BlspError where there is none."""
    asked = {"name": model, "alias": "champion"}
    answer = httpx.get(f"{address}/api/2.0/mlflow/registered-models/alias", params=asked, timeout=60)
    if answer.is_error:
        raise BlspError(f"No champion of {model} is in mlflow.db; promote one with `make demo`.")
    version = answer.json()["model_version"]
    got = httpx.get(f"{address}/api/2.0/mlflow/runs/get", params={"run_id": version["run_id"]}, timeout=60)
    info = got.raise_for_status().json()["run"]["info"]
    run = f"{address}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
    registered = f"{address}/#/models/{model}/versions/{version['version']}"
    return [
        Shot("mlflow-run", run + FOR_TRAINING, "Datasets", 900),
        Shot("mlflow-curves", f"{run}/model-metrics{FOR_TRAINING}", "dev_kl", 1000),
        Shot("mlflow-model", registered + FOR_TRAINING, "Figures", 900),
    ]


def of_reports() -> list[Shot]:
    """The pages that the stages write."""
    pages = {"data_docs/index": "Data Docs", "answers": "Answers to read", "continuations": "What the LLM wrote"}
    heights = {"data_docs/index": 540}
    return [
        Shot(
            page.partition("/")[0].replace("_", "-"),
            Path(f"reports/{page}.html").resolve().as_uri(),
            shows,
            heights.get(page, HEIGHT_PX),
            ours=True,
        )
        for page, shows in pages.items()
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(overrides: Sequence[str], prefect: str, mlflow: str) -> None:
    addresses = {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow}
    given = [f"--set={one}" for one in overrides]
    done = subprocess.run([sys.executable, "-m", "flows.pipeline", *given], env={**os.environ, **addresses})
    if done.returncode:
        raise BlspError("The pipeline did not complete; what it said stands above.")


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where there is no browser, no promoted model, or a page that is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.screenshots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="a value for the run shown"
    )
    options = parser.parse_args(arguments)
    try:
        find_browser()
        model = load_params(PARAMS_FILE).promote.model_name
        if not Path("mlflow.db").is_file():
            raise BlspError("mlflow.db: not there, so there is no run to show; make one with `make demo`.")
        with servers() as (prefect, mlflow):
            _run(options.overrides, prefect, mlflow)
            for path in take([*of_prefect(prefect), *of_mlflow(mlflow, model), *of_reports()], IMAGES):
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
