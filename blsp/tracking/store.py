"""Where runs are kept: the address, the connection, and how runs are found by what they hold."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blsp.errors import BlspError
from blsp.files import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "blsp"
VARIANTS = "blsp-variants"  # the experiment of what is trained beside the pipeline, for comparison
DEFAULT_URI = "sqlite:///mlflow.db"

ADAPTER_TAG = "blsp.adapter_sha256"  # which adapter a finished run holds
KEY_TAG = "blsp.training_key"  # which training a run is of, before there is an adapter
VARIANT_TAG = "blsp.variant"  # its name under `experiments`; the pipeline's own training has none
MODEL_TAG = "blsp.model_id"  # the logged model, once all of it is there
COMMIT_TAG = "mlflow.source.git.commit"  # MLflow's own name, which its pages show as the source version
SOURCE_TAG = "mlflow.source.name"  # likewise; without a name beside it the commit is not shown
DIRTY_TAG = "blsp.git_dirty"  # true where there were changes that no commit has
MIRROR_TAG = "blsp.mirror_sha256"  # of everything mirrored; written last, so its presence means complete

# MLflow's own patience (7 retries of 120 s) would hold a stage back for minutes when a server is away.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_TRACKING_URI": DEFAULT_URI,
}
REMEDY = "Start the server or correct MLFLOW_TRACKING_URI"
CHATTER = ("mlflow", "alembic", "urllib3.connectionpool")


class TrackingError(BlspError):
    """MLflow did not take what it was given; the message names its address, the reason and the remedy."""


@dataclass(frozen=True)
class Store:
    """An open connection: the client and the id of the experiment that its runs belong to."""

    client: "MlflowClient"
    experiment_id: str

    def runs_with(self, tag: str, value: str) -> list["Run"]:
        """The runs that carry `tag` = `value`, newest first."""
        return list(
            self.client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`{tag}` = '{value}'",
                order_by=["attributes.start_time DESC"],
            )
        )

    def curve(self, run: "Run", prefix: str) -> dict[str, dict[int, float]]:
        """{metric: {step: value}} of a run's metrics whose names begin with `prefix`."""
        return {
            key: {point.step: point.value for point in self.client.get_metric_history(run.info.run_id, key)}
            for key in run.data.metrics
            if key.startswith(prefix)
        }


def enabled() -> bool:
    """Whether runs are recorded: BLSP_TRACKING is `on` (the default) or `off`; BlspError for other words."""
    word = os.environ.get("BLSP_TRACKING", "on").lower()
    if word not in ("on", "off"):
        raise BlspError(f"BLSP_TRACKING={word}: must be on or off")
    return word == "on"


def uri() -> str:
    """The tracking address: MLFLOW_TRACKING_URI, or a SQLite file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def pipeline_experiment() -> str:
    """The MLflow experiment of the pipeline's own runs: MLFLOW_EXPERIMENT_NAME, or blsp."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


@contextlib.contextmanager
def session(experiment: str | None = None) -> Iterator[Store]:
    """An open Store of an experiment, by default the pipeline's.

    Whatever MLflow raises inside the block comes out as one TrackingError.
    The first use in a process takes 8 s of import, and 10 s more where the SQLite file has to be made.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Retries and migrations are reported line by line; the one message that matters is raised below.
    levels = {name: logging.getLogger(name).level for name in CHATTER}
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # its import sets a level of its own
        try:
            with _alone():
                client = mlflow.MlflowClient(uri(), os.environ.get("MLFLOW_REGISTRY_URI") or uri())
                experiment_id = _experiment_id(client, experiment or pipeline_experiment())
            yield Store(client, experiment_id)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            refused = getattr(error, "error_code", None) == "UNAUTHENTICATED"
            remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if refused else REMEDY
            raise TrackingError(
                f"MLflow at {uri()} failed: {reason}\nNothing is lost: the files hold all of it. {remedy}, then run "
                f"`blsp track`{' with its --variant and --seed' if experiment == VARIANTS else ''}."
            ) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A block that one process of this machine is in at a time: MLflow has no lock of its own on the making of its
    SQLite file and of experiments, and trainings that begin together both begin with that."""
    folder = scratch_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mlflow.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # until the file is closed
        yield


def _experiment_id(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)
