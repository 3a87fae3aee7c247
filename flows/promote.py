"""The promotion as a Prefect flow: the trained adapter becomes champion where all gates hold. And the way back."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed

from blsp import registry
from blsp.errors import BlspError
from blsp.params import PARAMS_FILE, load_params
from flows.console import readable
from flows.local_server import ensure_server
from flows.workspace import WorkspaceBusy, taken

PREVIOUS = 0  # no version has this number


@flow(name="promote", persist_result=False)
def promote(params_file: str = PARAMS_FILE) -> State[Any]:
    """Completed where the adapter in models/adapter is champion afterwards; Failed, naming each gate that
    does not hold and by how much, or what was missing, where it is not. The table of gates is an artifact.
    Failed with the name WorkspaceBusy where a run of the pipeline has the workspace."""
    log = get_run_logger()
    by = f"promotion '{flow_run.name}'"
    try:
        with taken(by, log.warning, deployed=deployment.id is not None, runs_stages=False):
            promotion = registry.promote(load_params(params_file))
    except WorkspaceBusy as error:
        log.error("%s", error)
        return Failed(name="WorkspaceBusy", message=str(error))
    except BlspError as error:
        log.error("%s", error)
        return Failed(message=str(error))
    summary = promotion.summary()
    log.info("gates:\n%s", promotion.table())
    create_markdown_artifact(f"{summary}\n\n{promotion.table()}\n", key="promotion", description=summary)
    if promotion.outcome == "refused":
        log.error("%s", summary)
        return Failed(message=summary)
    log.info("%s", summary)
    return Completed(message=summary)


@flow(name="roll-back", persist_result=False)
def roll_back(version: int | None = None, params_file: str = PARAMS_FILE) -> State[Any]:
    """Completed where the champion before, or the version that is named, is champion again; Failed, with the reason,
    where there is none: then nothing has changed."""
    log = get_run_logger()
    try:
        summary = registry.roll_back(load_params(params_file), version).summary()
    except BlspError as error:
        log.error("%s", error)
        return Failed(message=str(error))
    log.info("%s", summary)
    return Completed(message=summary)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where what was asked for is so now, 1 where it was refused or not possible."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.promote",
        description=(
            "Record the adapter in models/adapter and its evaluation in MLflow, register it as a new version "
            "of promote.model_name, load that version as a server would and ask it a test utterance, give it the "
            "alias `challenger`, and move the alias `champion` to it if every gate under promote.gates in "
            "params.yaml holds: absolute bounds, bounds relative to the cascade of the same evaluation, and bounds "
            "relative to the present champion; and if no task fell against the champion on the same test items "
            "(promote.no_task_may_fall). If anything fails midway, the aliases stay as they were."
        ),
        epilog=(
            "Exit status 1 means refused (the table says by which gate and how much) or not possible; another "
            "promotion being under way is one reason. docs/registry.md says what each refusal means. "
            "Promoting the champion again changes nothing. MLflow is found through MLFLOW_TRACKING_URI "
            "(default: sqlite:///mlflow.db here), Prefect through PREFECT_API_URL (default: a temporary "
            "server). Afterwards, with the virtual environment active: "
            "`mlflow models serve -m models:/blsp@champion --env-manager local`."
        ),
    )
    parser.add_argument("--params", default=PARAMS_FILE, help="params file (default: %(default)s)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--roll-back",
        nargs="?",
        type=_version,
        const=PREVIOUS,
        metavar="VERSION",
        help="instead: make the champion before champion again, or this version, which was champion once",
    )
    instead.add_argument(
        "--show", action="store_true", help="instead: say who is champion and challenger, and how each became so"
    )
    options = parser.parse_args(arguments)
    if options.show:
        return _show(options.params)
    try:
        readable(pages=not ensure_server())
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    if options.roll_back is not None:
        return 0 if roll_back(options.roll_back or None, options.params, return_state=True).is_completed() else 1
    return 0 if promote(options.params, return_state=True).is_completed() else 1


def _show(params_file: str) -> int:
    try:
        print(registry.overview(load_params(params_file)))
    except BlspError as error:
        print(f"flows.promote: {error}", file=sys.stderr)
        return 1
    return 0


def _version(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a version's number, from 1 on; found {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
