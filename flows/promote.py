"""The promotion as a Prefect flow: the trained adapter becomes champion where all gates hold."""

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
from flows.workspace import WorkspaceBusy, taken


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


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the adapter is champion now or was already, 1 where it was refused or could not be judged."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.promote",
        description=(
            "Record the adapter in models/adapter and its evaluation in MLflow, register it as a new version "
            "of promote.model_name with the alias `challenger`, and move the alias `champion` to it if every "
            "gate under promote.gates in params.yaml holds: absolute bounds, bounds relative to the cascade "
            "of the same evaluation, and bounds relative to the present champion."
        ),
        epilog=(
            "Exit status 1 means refused (the table says by which gate and how much) or not possible. "
            "Promoting the champion again changes nothing. MLflow is found through MLFLOW_TRACKING_URI "
            "(default: sqlite:///mlflow.db here), Prefect through PREFECT_API_URL (default: a temporary "
            "server). Afterwards, with the virtual environment active: "
            "`mlflow models serve -m models:/blsp@champion --env-manager local`."
        ),
    )
    parser.add_argument("--params", default=PARAMS_FILE, help="params file (default: %(default)s)")
    options = parser.parse_args(arguments)
    readable()
    return 0 if promote(options.params, return_state=True).is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
