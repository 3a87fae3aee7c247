"""The one door to MLflow. Files are the truth (`reports/`, `models/adapter`); MLflow mirrors them.

    with tracking.open_tracker(params) as tracker:      # train: the curve appears while training runs
        tracker.log(step, {"loss": loss})
        ...                                             # the last lines write the stage's files
    with tracking.mirror_after(params):                 # evaluate: recorded once the block has ended well
        ...
    run_id = tracking.sync(params)                      # promote and `blsp track`: whole, or an error

The first two never slow a stage down nor break it, wherever MLflow is: one warning, and `blsp track` replays
later. `BLSP_TRACKING=off` turns all three off. Nothing here imports MLflow (8 s) before it is used.
"""

from blsp.tracking.live import Tracker, mirror_after, open_tracker
from blsp.tracking.store import TrackingError, enabled
from blsp.tracking.sync import sync

__all__ = ["Tracker", "TrackingError", "enabled", "mirror_after", "open_tracker", "sync"]
