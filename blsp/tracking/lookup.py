"""From an adapter back to the run that holds it."""

from dataclasses import dataclass

from blsp import files
from blsp.tracking import store
from blsp.tracking.store import ADAPTER_TAG, COMMIT_TAG, DIRTY_TAG, MIRROR_TAG, VARIANT_TAG
from blsp.tracking.sync import experiment_of
from blsp.training.places import Places


@dataclass(frozen=True)
class Recorded:
    """A finished run, and the commit at which its training ended; `changed`: with changes that no commit has."""

    run_id: str
    commit: str | None
    changed: bool


def recorded(places: Places) -> Recorded | None:
    """The newest whole run of the adapter in these places; None where there is none, or with BLSP_TRACKING=off.

    Raises TrackingError where MLflow is not there.
    """
    if not store.enabled():
        return None
    with store.session(experiment_of(places)) as opened:
        for run in opened.runs_with(ADAPTER_TAG, files.sha256_of(places.adapter)):
            tags = run.data.tags
            if MIRROR_TAG in tags and tags.get(VARIANT_TAG) == places.variant:
                return Recorded(str(run.info.run_id), tags.get(COMMIT_TAG), tags.get(DIRTY_TAG) == "true")
    return None
