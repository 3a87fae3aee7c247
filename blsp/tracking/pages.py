"""Where a run's page is, for whoever has a browser. No MLflow here."""

import os
from urllib.parse import urlsplit

from blsp.tracking import store

ANNOUNCED = "recorded in MLflow: "  # what begins the line in a stage's output that names its run's page
FOR_TRAINING = "?workflowType=machine_learning"  # ends an address; else the first visit has a menu for other work


def pages() -> str | None:
    """The address of MLflow's pages, without credentials: BLSP_MLFLOW_PAGES, and otherwise MLFLOW_TRACKING_URI where
    that is a server's. None where runs are in a file, which `mlflow ui` shows."""
    address = urlsplit(os.environ.get("BLSP_MLFLOW_PAGES") or store.uri())
    if address.scheme not in ("http", "https"):
        return None
    return address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


def run_page(experiment_id: str, run_id: str) -> str | None:
    """The address of a run's page; None where there are no pages."""
    address = pages()
    return f"{address}/#/experiments/{experiment_id}/runs/{run_id}" if address else None


def run_page_in(line: str) -> str | None:
    """The address of a run's page that this line of a stage's output announces, if it does."""
    return line.removeprefix(ANNOUNCED).strip() if line.startswith(ANNOUNCED) else None
