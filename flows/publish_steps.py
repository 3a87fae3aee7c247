"""The steps of a publication: what stands in its way, then data, commit, tag, and the run's note in MLflow."""

import configparser
import dataclasses
import datetime
import json
import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from blsp import files
from blsp.errors import BlspError
from blsp.tracking import TrackingError
from blsp.tracking.local import BACKBONES, EVALUATION, NOT_CHANGES, figures, read_evaluation
from blsp.tracking.lookup import Recorded, recorded
from blsp.tracking.store import session
from blsp.training.places import PIPELINE
from flows import machine
from flows.dvc_graph import Graph, Stage, load_graph
from flows.experiments import stale
from flows.git import asked, changes, git, paths
from flows.published import (
    BRANCHES,
    LOCK,
    PUBLISHED_TAG,
    RECORD,
    TAGS,
    Published,
    digests_of,
    free_name,
    in_repository,
    stages_of,
    with_lock,
)
from flows.stage_process import dvc

logger = logging.getLogger(__name__)

RAW_DATA = "data/"  # what lies here is data: often too large for git, and read by the first stage alone
SHOWN = 5  # paths a message names
PUSH_LIMIT_S = 600.0  # s that `git push` may take


@dataclass(frozen=True)
class Candidate:
    """A run that nothing stands in the way of."""

    name: str
    head: str  # the commit that has its code and settings
    remote: str
    remote_url: str
    stages: tuple[Stage, ...]  # upstream first
    adapter_sha256: str
    run: Recorded | None  # in MLflow
    begun: Published | None  # where it is published already, or was as far as its branch
    notes: tuple[str, ...]  # what a reader of the publication should know

    def in_words(self) -> str:
        """One line."""
        at = f"{len(self.stages)} stages up to date, code of commit {self.head[:12]}"
        return f"run {self.name}: {at}, DVC remote {self.remote}"


async def check(remote: str | None) -> Candidate:
    """The run that dvc.lock holds. Raises BlspError, saying what to do, where it cannot be published."""
    in_repository()
    head = asked("rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        raise BlspError("this repository has no commit yet: commit the code, then publish")
    _refuse_changes()
    name, url = _remote(remote)
    graph = await load_graph()
    if late := stale(graph):
        listed = ", ".join(stage.name for stage in late)
        raise BlspError(f"the pipeline is not up to date ({listed}): run `dvc repro`, then publish")
    notes = await _refuse_what_no_clone_has(graph)
    for path in (LOCK, PIPELINE.adapter, *(path for stage in graph.stages for path in stage.committed)):
        if not Path(path).exists():  # which DVC takes for unchanged where it has a remote
            raise BlspError(f"{path}: not there; `dvc pull` or `git restore` brings it back, `dvc repro` makes it")
    adapter_sha256 = files.sha256_of(PIPELINE.adapter)
    judged = read_evaluation()["adapter_sha256"]
    if judged != adapter_sha256:
        raise BlspError(f"{EVALUATION}: judges another adapter than {PIPELINE.adapter}; run `dvc repro evaluate`")
    begun = with_lock(git("hash-object", "--", LOCK))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Candidate(
        name=begun.name if begun else free_name(f"{today}-{adapter_sha256[:8]}"),
        head=head,
        remote=name,
        remote_url=url,
        stages=graph.stages,
        adapter_sha256=adapter_sha256,
        run=_recorded(),
        begun=begun,
        notes=tuple(notes),
    )


async def push_data(candidate: Candidate, on_line: Callable[[str], None]) -> str:
    """How much the remote has got. Raises BlspError where it does not have all of it afterwards."""
    names = [stage.name for stage in candidate.stages]
    lines: list[str] = []

    def heed(line: str) -> None:
        lines.append(line)
        on_line(line)

    again = (
        "mend it (S3's credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and publish again: what has "
        "arrived is not sent twice"
    )
    ended = await dvc(["push", "--remote", candidate.remote, *names], heed)
    if ended.how == "failed":
        raise BlspError(f"`dvc push` to {candidate.remote} failed: {ended.reason}; nothing is published; {again}")
    answers: list[str] = []
    stored = [path for stage in candidate.stages for path in stage.stored]
    # `dvc push` and `dvc status --cloud` take a folder that the remote lists for whole; this asks for every file.
    question = ["data", "status", "--json", "--granular", "--not-in-remote", "--remote", candidate.remote]
    asking = await dvc([*question, *stored], answers.append)
    if asking.how == "failed":
        raise BlspError(f"`dvc data status` failed: {asking.reason}; nothing is published; {again}")
    found = json.loads(next((line for line in answers if line.startswith("{")), "{}"))
    if lacking := found.get("not_in_remote"):
        raise BlspError(
            f"{candidate.remote} lacks {_some(lacking)} after `dvc push`: nothing is published. Where DVC's cache here "
            "has lost them too, `dvc repro --force` makes them again; otherwise the remote lost them since an earlier "
            "push: remove the .dir objects that list them from it (docs/scaling-out.md). Then publish again"
        )
    sent = next((match[1] for line in lines if (match := re.match(r"(\d+) files? pushed", line))), "no")
    outs = [out for stage in stages_of(Path(LOCK).read_text("utf-8"), LOCK).values() for out in stage.get("outs", ())]
    total = sum(out.get("size", 0) for out in outs if out["path"] in stored) / 2**20
    return f"{sent} files pushed to {candidate.remote}, which has all {total:,.1f} MiB of the run"


async def commit(candidate: Candidate) -> Published:
    """The run with its branch, which is made where there is none: HEAD and what the stages wrote of what git keeps.

    It is made beside the user's index, branch and files, which stay as they are.
    """
    if candidate.begun:
        return candidate.begun
    record = _record(candidate)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        git("read-tree", candidate.head, index=index)
        written = [path for stage in candidate.stages for path in stage.committed]
        git("add", "--all", "--force", "--", LOCK, *written, index=index)
        text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        blob = git("hash-object", "-w", "--stdin", content=text)
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},{RECORD}", index=index)
        tree = git("write-tree", index=index)
    new = git("commit-tree", tree, "-p", candidate.head, content=record["message"] + "\n")
    git("update-ref", f"{BRANCHES}{candidate.name}", new, "0" * 40)  # refused where the branch is there by now
    return Published(candidate.name, f"{BRANCHES}{candidate.name}", new, record)


async def share(published: Published, push_to: str | None) -> bool:
    """Whether the tag was made, for it is there afterwards; `push_to` has branch and tag, both or neither, before."""
    ref = f"{TAGS}{published.name}"
    present = asked("rev-parse", "--verify", "--quiet", ref)
    # Of the commit alone, so that an interrupted attempt and the next one make the same tag.
    tagger = git("show", "--no-patch", "--date=raw", "--format=%cn <%ce> %cd", published.commit)
    head = f"object {published.commit}\ntype commit\ntag {published.tag}\ntagger {tagger}\n\n"
    tag = present or git("mktag", content=f"{head}{published.record['message']}\n")
    if push_to:
        refs = [f"{published.commit}:{BRANCHES}{published.name}", f"{tag}:{ref}"]
        try:
            git("push", "--quiet", "--atomic", push_to, *refs, limit_s=PUSH_LIMIT_S)
        except BlspError as error:
            left = "" if present else "; the data is in the DVC remote, the tag is not made"
            raise BlspError(f"{error}{left}: mend it and publish again") from error
    if present is None:
        git("update-ref", ref, tag, "0" * 40)
    return present is None


async def record(candidate: Candidate, published: Published) -> str:
    """What is said of MLflow, whose run names the tag afterwards; it breaks no publication where it is away."""
    if candidate.run is None:
        return "no run in MLflow names it: `blsp track`, then publish again"
    try:
        with session() as opened:
            opened.client.set_tag(candidate.run.run_id, PUBLISHED_TAG, published.tag)
    except TrackingError as error:
        logger.warning("%s", error)
        return "MLflow is away, so that its run does not name it: publish again when it is back"
    return ""


def _refuse_changes() -> None:
    if changed := changes(*NOT_CHANGES):  # what the pipeline itself writes is what gets committed
        raise BlspError(
            f"changes that no commit has: {_some(changed)}. A clone would not have them: commit them, then publish"
        )


async def _refuse_what_no_clone_has(graph: Graph) -> list[str]:
    """Notes on raw data that git does not have. Raises BlspError where a stage depends on other such files."""
    sources = sorted({path for stage in graph.stages for path in stage.sources})
    others = paths("ls-files", "-z", "--others", "--", *sources) if sources else []
    kept = [path.removesuffix(".dvc") for path in paths("ls-files", "-z", "--", "*.dvc")]
    others = [path for path in others if not any(path == root or path.startswith(f"{root}/") for root in kept)]
    raw = [path for path in others if path.startswith(RAW_DATA)]
    if code := [path for path in others if not path.startswith(RAW_DATA)]:
        unseen: list[str] = []  # by DVC: in no digest
        await dvc(["check-ignore", *code], unseen.append)
        code = [path for path in code if path not in unseen]
    if code:
        raise BlspError(
            f"stages depend on files that git does not have: {_some(code)}. A clone would not have them: "
            "commit them, or name them in .dvcignore, then publish"
        )
    if raw:
        what = f"{len(raw)} files of raw data are in no commit ({_some(raw)})"
        return [f"{what}: a clone pulls what was made of them, but cannot run the stage that reads them"]
    return []


def _remote(wanted: str | None) -> tuple[str, str]:
    """Name and address of a DVC remote that a clone finds. Raises BlspError where there is none."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read_string(asked("show", "HEAD:./.dvc/config") or "")
    name = wanted or config.get("core", "remote", fallback=None)
    how = "`dvc remote add --default NAME s3://BUCKET/PREFIX` and commit .dvc/config (docs/scaling-out.md)"
    if name is None:
        raise BlspError(f"no default DVC remote is in the committed .dvc/config: {how}")
    url = config.get(f"'remote \"{name}\"'", "url", fallback=None)
    if url is None:
        raise BlspError(f"the committed .dvc/config has no DVC remote {name}, so that a clone would not find it: {how}")
    if "://" not in url and not Path(url).is_absolute():
        raise BlspError(f"DVC remote {name} is the relative folder {url}, which lies elsewhere for a clone: {how}")
    return name, url


def _recorded() -> Recorded | None:
    try:
        return recorded(PIPELINE)
    except TrackingError as error:
        logger.warning("%s", error)
        return None


def _record(candidate: Candidate) -> dict[str, Any]:
    digests = digests_of(stages_of(Path(LOCK).read_text("utf-8"), LOCK))
    metrics = [path for stage in candidate.stages for path in stage.metrics]
    found = {
        "name": candidate.name,
        "published_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": candidate.head,
        "run": dataclasses.asdict(candidate.run) if candidate.run else None,
        "adapter_sha256": candidate.adapter_sha256,
        "backbones": files.read_json(BACKBONES) if BACKBONES.exists() else None,
        "digests": digests,
        "metrics": metrics,
        "figures": _headline(),
        "stages": [
            {
                "name": stage.name,
                "upstream": stage.upstream,
                "inputs": stage.inputs,
                "stored": stage.stored,
                "committed": stage.committed,
                "metrics": stage.metrics,
            }
            for stage in candidate.stages
        ],
        "remote": {"name": candidate.remote, "url": _without_password(candidate.remote_url)},
        "machine": machine.facts(),
        "notes": candidate.notes,
    }
    return {**found, "message": _message(found)}


def _headline() -> dict[str, float]:
    """The figures of the trained system and its gap, without the ends of their intervals and without floors."""
    return {
        name: value
        for name, value in figures(read_evaluation()).items()
        if (name.startswith("speech.") or (name.startswith("alignment.") and name.count(".") == 1))
        and not name.endswith((".low", ".high"))
    }


def _message(found: dict[str, Any]) -> str:
    """The commit's and the tag's."""
    run = found["run"]
    recorded_as = f"{run['run_id']}, trained at {run['commit'] or 'no commit'}" if run else "not recorded"
    if run and run["changed"]:
        recorded_as += " with changes that no commit had then"
    stored = [path for stage in found["stages"] for path in stage["stored"] if path in found["digests"]]
    lines = [
        f"Run {found['name']}",
        "",
        f"MLflow run: {recorded_as}",
        f"Adapter: sha256 {found['adapter_sha256']}",
        f"Data: DVC remote {found['remote']['name']}, {found['remote']['url']}",
        *(f"  {path} {found['digests'][path]}" for path in stored),
        f"Machine: {machine.in_words(found['machine'])}",
        *(f"Note: {note}" for note in found["notes"]),
        "",
        *(f"{name} {value:.6g}" for name, value in found["figures"].items()),
    ]
    return "\n".join(lines).rstrip()


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return url if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _some(found: list[str]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
