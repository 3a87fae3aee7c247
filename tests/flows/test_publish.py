"""The publication of a toy run, with real git and real DVC, and what stands in its way."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.settings import get_current_settings

from blsp.files import sha256_of
from flows.publish import publish
from tests import toy_run
from tests.toy_run import dvc, git

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def project(toy: Path) -> Path:
    return toy


def published(remote: str | None = None, push_to: str | None = None) -> State[Any]:
    async def run() -> State[Any]:
        return await publish(remote, push_to, return_state=True)

    return asyncio.run(run())


def refused() -> str:
    """Why; nothing is published."""
    state = published()
    assert state.is_failed() and state.message
    assert references() == {}
    return state.message


def references() -> dict[str, str]:
    """{reference: object} of all published runs here."""
    lines = git(Path(), "for-each-ref", "--format=%(refname) %(objectname)", "refs/tags", "refs/heads/runs").split("\n")
    return dict(line.split() for line in lines if line)


def the_tag() -> str:
    (tag,) = [ref for ref in references() if ref.startswith("refs/tags/run-")]
    return tag.removeprefix("refs/tags/")


def checkout() -> tuple[str, ...]:
    """All of the user's that a publication leaves alone: branch, commit, index, and files as git sees them."""
    index = git(Path(), "ls-files", "--stage")
    return git(Path(), "symbolic-ref", "HEAD"), git(Path(), "rev-parse", "HEAD"), index, git(Path(), "status", "-s")


def test_branch_and_tag_hold_lock_metrics_and_record_and_the_checkout_stays(project: Path, tmp_path: Path) -> None:
    git(project, "add", "reports/evaluation.json")
    Path("reports/own.md").write_text("a page of no stage")
    before = checkout()
    state = published()
    assert state.is_completed() and state.message
    tag = the_tag()
    assert f"published as {tag}" in state.message and "files pushed to store, which has all" in state.message
    assert tag.endswith(sha256_of("models/adapter")[:8])
    assert checkout() == before and not Path("reports/published.json").exists()
    name = tag.removeprefix("run-")
    assert git(Path(), "rev-parse", f"runs/{name}") == git(Path(), "rev-parse", f"{tag}^{{commit}}")
    assert git(Path(), "rev-parse", f"{tag}^") == git(Path(), "rev-parse", "main")
    assert git(Path(), "cat-file", "-t", tag) == "tag"
    changed = set(git(Path(), "diff", "--name-only", "main", tag).split())
    written = ("evaluation.json", "figures/systems.svg", "published.json", "train.json", "train_log.jsonl")
    assert changed == {"dvc.lock", *(f"reports/{path}" for path in written)}
    message = git(Path(), "show", "--no-patch", "--format=%B", f"{tag}^{{commit}}")
    for said in (f"Adapter: sha256 {sha256_of('models/adapter')}", "speech.asr.wer 0.06", "data/corpus ", "torch"):
        assert said in message
    record = json.loads(git(Path(), "show", f"{tag}:reports/published.json"))
    assert [stage["name"] for stage in record["stages"]].index("train") == 2
    assert record["machine"]["threads"] and record["remote"]["url"] == str(tmp_path / "store")
    assert record["digests"]["data/corpus"].endswith(".dir")

    refs = references()
    again = published()
    assert again.is_completed() and again.message and f"already published as {tag}: nothing changed" in again.message
    assert references() == refs and checkout() == before


def test_another_run_of_the_same_day_gets_another_name(project: Path) -> None:
    assert published().is_completed()
    toy_run.write_params(project, "one", lr=0.2)
    git(project, "commit", "-qm", "Settings", "params.yaml")
    dvc(project, "repro", "--quiet")
    assert published().is_completed()
    dvc_lock = Path("dvc.lock").read_text()
    tags = [ref for ref in references() if "tags" in ref]
    assert len(tags) == 2 and sum(git(project, "show", f"{tag}:dvc.lock") == dvc_lock.strip() for tag in tags) == 1


def test_what_stands_in_the_way_is_named_with_what_to_do(project: Path) -> None:
    toy_run.write_params(project, "one", lr=0.2)
    assert "changes that no commit has: params.yaml" in refused()
    git(project, "commit", "-qm", "Settings", "params.yaml")
    message = refused()
    assert "not up to date (train, evaluate): run `dvc repro`" in message
    git(project, "reset", "-q", "--hard", "HEAD^")
    Path("parts/__pycache__").mkdir()
    Path("parts/__pycache__/loop.cpython-311.pyc").write_text("as Python leaves it")
    Path("parts/new.py").write_text("")
    dvc(project, "repro", "--quiet")
    message = refused()
    assert "files that git does not have: parts/new.py." in message
    git(project, "add", "parts")
    git(project, "commit", "-qm", "Part")
    Path("reports/train.json").unlink()
    assert "reports/train.json: not there" in refused()
    dvc(project, "repro", "--quiet")
    assert published().is_completed()


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ("", "no default DVC remote is in the committed .dvc/config"),
        ("remote = other\n", "has no DVC remote other"),
        ("remote = store\n['remote \"store\"']\nurl = ../../store\n", "relative folder"),
    ],
)
def test_a_remote_that_a_clone_would_not_find_is_refused(project: Path, config: str, wanted: str) -> None:
    Path(".dvc/config").write_text(f"[core]\nanalytics = false\nautostage = true\n{config}")
    Path(".dvc/config.local").write_text("[core]\nremote = here\n['remote \"here\"']\nurl = /tmp/here\n")
    git(project, "commit", "-qm", "Remote", ".dvc/config")
    message = refused()
    assert wanted in message and "dvc remote add --default" in message


def test_raw_data_that_git_does_not_have_is_noted(project: Path) -> None:
    Path("data/source/clip.wav").write_text("a clip")
    dvc(project, "repro", "--quiet")
    assert published().is_completed()
    record = json.loads(git(project, "show", f"{the_tag()}:reports/published.json"))
    assert "1 files of raw data are in no commit (data/source/clip.wav)" in record["notes"][0]


def test_branch_and_tag_reach_a_git_remote_both_or_neither(project: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--bare", "upstream.git")
    git(project, "remote", "add", "upstream", str(tmp_path / "upstream.git"))
    hook = tmp_path / "upstream.git/hooks/update"
    hook.write_text('#!/bin/sh\ncase "$1" in refs/tags/*) echo "no tags here" >&2; exit 1;; esac\n')
    hook.chmod(0o755)
    state = published(push_to="upstream")
    assert state.is_failed() and state.message and "no tags here" in state.message
    assert "the tag is not made: mend it and publish again" in state.message
    assert not git(tmp_path / "upstream.git", "for-each-ref")
    assert [ref for ref in references() if "tags" in ref] == []
    hook.unlink()
    assert published(push_to="upstream").is_completed()
    there = git(tmp_path / "upstream.git", "for-each-ref", "--format=%(refname) %(objectname)").split("\n")
    assert dict(line.split() for line in there) == references()


def test_killed_between_the_data_and_the_tag_it_goes_on(project: Path) -> None:
    """kill -9 while git makes the tag: the data and the branch are there, and no tag says that the run is whole."""
    fake = project.parent / "bin/git"
    fake.parent.mkdir()
    real = shutil.which("git")
    fake.write_text(f'#!/bin/sh\ncase "$1" in mktag) touch {fake}.reached; sleep 600;; esac\nexec {real} "$@"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PREFECT_API_URL": str(get_current_settings().api.url)}
    killed = subprocess.Popen(
        [sys.executable, "-m", "flows.publish"],
        env={**environment, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"},
        start_new_session=True,
    )
    until_s = time.monotonic() + 120
    while not Path(f"{fake}.reached").exists():
        assert killed.poll() is None and time.monotonic() < until_s
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (branch,) = references()
    made = references()[branch]
    state = published()
    assert state.is_completed() and state.message and "no files pushed" in state.message
    assert references()[branch] == made and git(project, "rev-parse", f"{the_tag()}^{{commit}}") == made


def test_data_that_is_nowhere_any_more_is_not_published(project: Path) -> None:
    """DVC warns of it and says that everything is up to date."""
    shutil.rmtree(".dvc/cache")
    assert "store lacks" in refused()


def test_a_remote_that_lost_a_file_of_a_folder_is_not_trusted(project: Path) -> None:
    """`dvc push` looks at the folder's list alone, and `dvc status --cloud` says that all is there."""
    dvc(project, "push")
    md5 = hashlib.md5(Path("models/adapter/config.json").read_bytes(), usedforsecurity=False).hexdigest()
    (project.parent / f"store/files/md5/{md5[:2]}/{md5[2:]}").unlink()
    message = refused()
    assert "store lacks models/adapter/config.json after `dvc push`" in message
    for listing in (project.parent / "store").rglob("*.dir"):
        listing.unlink()
    assert published().is_completed()


def test_nothing_is_published_where_the_folder_refuses(project: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the remote's folder should be")
    message = refused()
    assert "`dvc push` to store failed" in message and "publish again" in message
    (tmp_path / "store").unlink()
    assert published().is_completed()


def test_mlflow_away_breaks_no_publication(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLSP_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    state = published()
    assert state.is_completed() and state.message and "no run in MLflow names it" in state.message
    assert json.loads(git(project, "show", f"{the_tag()}:reports/published.json"))["run"] is None
