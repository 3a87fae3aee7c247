"""Where the numbers of the page come from: of each system and seed the run, the commit, and DVC's digests."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blsp import markdown
from blsp.evaluation.evaluate import ANSWERS
from blsp.paper.measure import places_of_all
from blsp.paper.robustness import ANSWERS as ROBUSTNESS
from blsp.params import Params
from blsp.params.training import BASELINES
from blsp.tracking import TrackingError, enabled
from blsp.tracking.local import dataset_digests
from blsp.tracking.lookup import Recorded, recorded
from blsp.training.places import PIPELINE, Places

logger = logging.getLogger(__name__)

SHOWN = 12  # letters of a commit or a digest on the page


def provenance(params: Params, names: Sequence[str]) -> dict[str, Any]:
    """{"data": {path: digest}, "systems": [a row a system and seed]}, for these trainings and all that needs none.

    A row has `system`, `seed`, `adapter` and `answers` (a path and its digest each; a baseline has no adapter) and
    `run` (blsp.tracking.lookup). A baseline's run is that of the evaluation in which it answered. Where MLflow does
    not have one, it is None, and said so.
    """
    sources = list(_sources(params, names))
    runs = _runs(places for _, _, places, _ in sources)
    rows = [
        {
            "system": system,
            "seed": seed,
            "run": asdict(run) if (run := runs.get(places)) else None,
            "adapter": None if system in BASELINES else _content(places.adapter),
            "answers": _content(answers),
        }
        for system, seed, places, answers in sources
    ]
    return {"data": dataset_digests(), "systems": rows}


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same as Markdown."""
    rows = [
        [
            one["system"],
            str(one["seed"]),
            one["run"]["run_id"] if one["run"] else "not recorded",
            _commit(one["run"]),
            one["adapter"]["md5"][:SHOWN] if one["adapter"] else "",
            one["answers"]["md5"][:SHOWN],
        ]
        for one in found["systems"]
    ]
    data = ", ".join(f"`{path}` {digest[:SHOWN]}" for path, digest in found["data"].items())
    return [
        "Of each system and seed: its run in MLflow, the commit at which its training ended (+: with changes that no "
        "commit has), and the MD5 that DVC gives its adapter and what was measured of it. What needs no adapter "
        "answered in the evaluation of the pipeline's own. Digests are whole, with their paths, in the JSON.",
        "",
        markdown.table(["system", "seed", "run", "commit", "adapter", "answers"], rows),
        *(["", f"All learned from: {data}."] if data else []),
    ]


def dvc_md5(path: str | Path) -> str:
    """What DVC calls the content of a file or a folder in dvc.lock, as it is now.

    That of a folder is of the list of its files, and ends in `.dir` (dvc_data/hashfile/tree.py, 3.18).
    """
    path = Path(path)
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, _md5).hexdigest()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    tree = json.dumps([{"md5": dvc_md5(path / name), "relpath": name} for name in names])
    return _md5(tree.encode()).hexdigest() + ".dir"


def _sources(params: Params, names: Sequence[str]) -> Iterator[tuple[str, int, Places, str]]:
    """System, seed, where its adapter lies, and where what was measured of it."""
    for name in BASELINES:
        yield name, params.train.seed, PIPELINE, ANSWERS
    for name in names:
        for places in places_of_all(params, name):
            assert places.seed is not None and places.measured is not None
            yield name, places.seed, places, places.measured
    yield "speech, worse audio", params.train.seed, PIPELINE, ROBUSTNESS


def _content(path: str) -> dict[str, str]:
    return {"path": path, "md5": dvc_md5(path)}


def _runs(trainings: Iterable[Places]) -> dict[Places, Recorded | None]:
    """The run of each; none of any where nothing is recorded, or MLflow is away."""
    if not enabled():
        return {}
    try:
        found = {places: recorded(places) for places in dict.fromkeys(trainings)}
    except TrackingError as error:
        logger.warning("%s", error)
        return {}
    for places in (places for places, run in found.items() if run is None):
        command = f"blsp track {places.options}".strip()
        logger.warning("%s: MLflow has no run of it, so the page names none; record it: `%s`", places.adapter, command)
    return found


def _commit(run: Mapping[str, Any] | None) -> str:
    if not run or not run["commit"]:
        return "not recorded"
    return run["commit"][:SHOWN] + ("+" if run["changed"] else "")


def _md5(content: bytes = b"") -> Any:
    return hashlib.md5(content, usedforsecurity=False)
