"""Published runs as git has them: branch `runs/NAME`, tag `run-NAME`, and in both what a run says of itself."""

import json
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML, YAMLError

from blsp.errors import BlspError
from flows.git import asked, git

RECORD = "reports/published.json"  # in the commit of a published run, and nowhere else
LOCK = "dvc.lock"
PUBLISHED_TAG = "blsp.published"  # of a run in MLflow: the tag that it was published under
TAGS, BRANCHES = "refs/tags/run-", "refs/heads/runs/"


@dataclass(frozen=True)
class Published:
    """A run that was published: its name, where git has it, and its record."""

    name: str
    ref: str
    commit: str
    record: dict[str, Any]

    @property
    def tag(self) -> str:
        return f"run-{self.name}"

    def text(self, path: str) -> str | None:
        """What a file of the published commit holds; None where it has no such file."""
        return asked("show", f"{self.commit}:./{path}")

    def lock(self) -> dict[str, Any]:
        """The stages of its dvc.lock."""
        return stages_of(self.text(LOCK), f"{LOCK} of {self.tag}")

    def digests(self) -> dict[str, str]:
        """{path: the digest that DVC gave it} of all that its stages wrote."""
        return digests_of(self.lock())


def stages_of(text: str | None, name: str) -> dict[str, Any]:
    """The stages of a dvc.lock. Raises BlspError, with `name`, where it is not as DVC writes it."""
    try:
        return dict(YAML(typ="safe", pure=True).load(text or "")["stages"])
    except (YAMLError, KeyError, TypeError, ValueError) as error:
        raise BlspError(f"{name}: not as DVC writes it ({str(error).partition(chr(10))[0]})") from error


def digests_of(stages: dict[str, Any]) -> dict[str, str]:
    """{path: md5} of the outputs in a dvc.lock."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}


def in_repository() -> None:
    """Nothing. Raises BlspError where the working folder is not the root of a git repository."""
    prefix = asked("rev-parse", "--show-prefix")
    if prefix is None:
        raise BlspError("this folder is not in a git repository: run it in a clone of the project")
    if prefix:
        raise BlspError(f"run it in the repository's root, not in {prefix}")


def find(run: str) -> Published:
    """The published run that `run` names: a tag, a branch, or the name in both. Raises BlspError where there is none,
    naming those that there are."""
    in_repository()
    short = run.removeprefix("run-").removeprefix("runs/")
    others = [f"refs/remotes/{remote}/runs/{short}" for remote in (asked("remote") or "").split()]
    for ref in (f"{TAGS}{short}", f"{BRANCHES}{short}", *others):
        if found := read(ref):
            return found
    known = ", ".join(sorted(f"run-{name}" for name in _names(TAGS))) or "none"
    raise BlspError(
        f"{run}: no published run of this name is in this repository; published here: {known}. "
        "`git fetch --tags` brings those that others pushed; `blsp publish` publishes the present one."
    )


def read(ref: str) -> Published | None:
    """The published run at a full reference; None where there is none. Raises BlspError where its record is broken."""
    commit = asked("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    text = asked("show", f"{commit}:./{RECORD}") if commit else None
    if commit is None or text is None:
        return None
    try:
        record = dict(json.loads(text))
        return Published(str(record["name"]), ref, commit, record)
    except (ValueError, KeyError, TypeError) as error:
        raise BlspError(f"{RECORD} at {ref}: not as `blsp publish` writes it ({error!r})") from error


def with_lock(blob: str) -> Published | None:
    """The run whose dvc.lock is this object of git: one with a tag, else one that was interrupted before its tag."""
    for ref in [f"{TAGS}{name}" for name in _names(TAGS)] + [f"{BRANCHES}{name}" for name in _names(BRANCHES)]:
        if asked("rev-parse", "--verify", "--quiet", f"{ref}:./{LOCK}") == blob and (found := read(ref)):
            return found
    return None


def free_name(wanted: str) -> str:
    """`wanted`, or `wanted-2` and so on where branch or tag has that name."""
    taken = {*_names(TAGS), *_names(BRANCHES)}
    number = 1
    while (name := wanted if number == 1 else f"{wanted}-{number}") in taken:
        number += 1
    return name


def _names(prefix: str) -> list[str]:
    listed = git("for-each-ref", "--format=%(refname)", f"{prefix}*")
    return [ref.removeprefix(prefix) for ref in listed.splitlines()]
