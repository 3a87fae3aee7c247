"""A run made whole from the local files: what is missing is added, what is there is left alone."""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from blsp.params import Params
from blsp.tracking import store
from blsp.tracking.local import CURVE, LocalRun, read_local, training_key
from blsp.tracking.store import ADAPTER_TAG, KEY_TAG, MIRROR_TAG, MODEL_TAG, Store
from blsp.training.places import PIPELINE, Places

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)
T = TypeVar("T")

# MLflow refuses larger batches.
METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100


def sync(params: Params, places: Places = PIPELINE, live_run: str | None = None) -> str | None:
    """The id of the run of the adapter in these places, after making it complete; None with BLSP_TRACKING=off.

    Called again it changes nothing. `live_run` is the run that the training just finished was mirrored to.
    Raises BlspError where the files are not there, TrackingError where MLflow is not.
    """
    if not store.enabled():
        logger.info("BLSP_TRACKING=off: nothing is recorded")
        return None
    local = read_local(params, places)
    with store.session(experiment_of(places)) as opened:
        run = _find_run(opened, local, live_run) or create_run(opened, params, places)
        if run.data.tags.get(MIRROR_TAG) != local.fingerprint():
            _complete(opened, run, local, params, places)
        return str(run.info.run_id)


def experiment_of(places: Places) -> str:
    """The name of the MLflow experiment that a training in these places belongs to."""
    return store.VARIANTS if places.variant else store.pipeline_experiment()


def create_run(opened: Store, params: Params, places: Places) -> "Run":
    """A new run, findable by its training key."""
    key = training_key(params, places)
    name = f"{places.variant}-{params.train.seed}" if places.variant else f"{params.train.objective}-{key[:8]}"
    return opened.client.create_run(opened.experiment_id, run_name=name, tags={KEY_TAG: key})


def log_points(
    opened: Store, run_id: str, points: Iterable[tuple[str, int, float]], model_id: str | None = None
) -> None:
    """Nothing; afterwards the run, and the model if one is given, has these (metric, step, value) points."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    metrics = (Metric(key, value, now_ms, step, model_id, run_id=run_id) for key, step, value in points)
    for batch in _batches(metrics, METRICS_A_BATCH):
        opened.client.log_batch(run_id, metrics=batch)


def _find_run(opened: Store, local: LocalRun, live_run: str | None) -> "Run | None":
    # A run is the present one's when it holds this adapter, or was begun for this training and holds none
    # yet; and says nothing else than the files do. MLflow's params cannot be changed: evaluating the same
    # adapter with other settings is another run. A curve differs where code changed between two attempts.
    began = [run for run in opened.runs_with(KEY_TAG, local.training_key) if ADAPTER_TAG not in run.data.tags]
    began.sort(key=lambda run: run.info.run_id != live_run)
    candidates = [*opened.runs_with(ADAPTER_TAG, local.adapter_sha256), *began]
    found = next((run for run in candidates if not _contradicts(opened, run, local)), None)
    if live_run and not (found and found.info.run_id == live_run):
        # The same training gave the same adapter once more, or the run holds an abandoned attempt's curve.
        opened.client.delete_run(live_run)
    return found


def _contradicts(opened: Store, run: "Run", local: LocalRun) -> bool:
    if any(local.params.get(key, value) != value for key, value in run.data.params.items()):
        return True
    there = opened.curve(run, CURVE)
    return any(
        local.curve.get(key, {}).get(step) != value for key, points in there.items() for step, value in points.items()
    )


def _complete(opened: Store, run: "Run", local: LocalRun, params: Params, places: Places) -> None:
    from mlflow.entities import Param, RunTag

    client, run_id = opened.client, run.info.run_id
    new_params = [Param(k, v) for k, v in local.params.items() if k not in run.data.params]
    for batch in _batches(new_params, PARAMS_A_BATCH):
        client.log_batch(run_id, params=batch)
    # The first record of a fact stands: the commit is the one at which training ended.
    tags = {**local.tags, **run.data.tags, ADAPTER_TAG: local.adapter_sha256, KEY_TAG: local.training_key}
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v])
    _log_datasets(opened, run_id, local.datasets)
    log_points(opened, run_id, _missing_points(local, opened.curve(run, CURVE)))
    for path in local.artifacts:
        client.log_artifact(run_id, path, _artifact_folder(path, places))
    model_id = run.data.tags.get(MODEL_TAG)
    if not model_id and not places.variant:  # a variant is compared, never served
        from blsp.serving.package import log_model

        model_id = log_model(opened, run_id, local, params)
        client.set_tag(run_id, MODEL_TAG, model_id)
    changed = ((key, 0, value) for key, value in local.metrics.items() if run.data.metrics.get(key) != value)
    log_points(opened, run_id, changed, model_id)
    if run.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    client.set_tag(run_id, MIRROR_TAG, local.fingerprint())


def _missing_points(local: LocalRun, there: dict[str, dict[int, float]]) -> Iterator[tuple[str, int, float]]:
    for key, points in local.curve.items():
        yield from ((key, step, value) for step, value in points.items() if step not in there.get(key, {}))


def _log_datasets(opened: Store, run_id: str, digests: dict[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    if not digests:
        logger.warning("no digest of the data is recorded with the run: dvc.lock has none; run `dvc repro`")
        return
    # What MLflow's MetaDataset of a local folder comes to, with DVC's digest for its own.
    datasets = [Dataset(path, digest, "local", json.dumps({"uri": path})) for path, digest in digests.items()]
    context = [InputTag(MLFLOW_DATASET_CONTEXT, "training")]
    opened.client.log_inputs(run_id, [DatasetInput(dataset, context) for dataset in datasets])


def _artifact_folder(path: str, places: Places) -> str | None:
    folder = os.path.dirname(path).removeprefix(os.path.dirname(places.report)).strip("/")
    return folder or None


def _batches(items: Iterable[T], size: int) -> Iterator[Sequence[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
