"""Real `dvc push` and `dvc pull` with a remote in S3 that throttles, fails, breaks off, and holds damaged objects."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults import dropped, dropped_midway, passed, truncated, unanswered
from tests.s3 import BUCKET, internal_error, keys, of_object, slow_down
from tests.trained import PARAMS


def run(folder, *command, check=True):
    return subprocess.run(command, cwd=folder, check=check, capture_output=True, text=True, timeout=300)


def dvc(folder, *arguments, check=True):
    return run(folder, sys.executable, "-m", "dvc", *arguments, check=check)


@pytest.fixture
def project(s3, tmp_path):
    """A repository with this project's DVC settings, some data, and a remote as docs/scaling-out.md sets it up."""
    s3.proxy.aim = of_object
    folder = tmp_path / "project"
    folder.mkdir()
    run(folder, "git", "init", "-q")
    dvc(folder, "init", "-q")
    shutil.copy(PARAMS.parent / ".dvc" / "config", folder / ".dvc" / "config")
    dvc(folder, "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
    dvc(folder, "remote", "modify", "store", "verify", "true")
    (folder / "data" / "train").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(3):
        (folder / "data" / "train" / f"cuts.{number:06d}.jsonl.gz").write_bytes(random.bytes(1_000 + number))
    (folder / "data" / "train" / "recording.000000.tar").write_bytes(random.bytes(5 * 2**20))
    dvc(folder, "add", "-q", "data")
    run(folder, "git", "add", ".")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "data")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def clone(project, name):
    run(project.parent, "git", "clone", "-q", str(project), name)
    return project.parent / name


def test_what_is_pushed_is_pulled(s3, project):
    s3.proxy.faults += [slow_down, dropped, passed, unanswered, dropped_midway, passed, internal_error]
    dvc(project, "push")
    assert s3.proxy.faults == []
    copy = clone(project, "copy")
    s3.proxy.faults += [slow_down, passed, truncated, dropped, unanswered, passed, internal_error, truncated]
    dvc(copy, "pull")
    assert s3.proxy.faults == []
    assert contents(copy / "data") == contents(project / "data")


def test_a_damaged_object_is_not_taken_for_whole(s3, project):
    """Which DVC does unless the remote is verified: it would name a file by the hash that it should have."""
    dvc(project, "push")
    recording = max(keys(s3), key=lambda key: s3.head_object(Bucket=BUCKET, Key=key)["ContentLength"])
    whole = s3.get_object(Bucket=BUCKET, Key=recording)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=recording, Body=whole[: len(whole) // 2])
    copy = clone(project, "copy")
    pulled = dvc(copy, "pull", check=False)
    assert pulled.returncode and "failed to pull" in pulled.stderr
    assert not (copy / "data").exists()
    # DVC remembers what it pushed, until it finds that the folder's own list is gone.
    for key in (recording, next(key for key in keys(s3) if key.endswith(".dir"))):
        s3.delete_object(Bucket=BUCKET, Key=key)
    assert "2 files pushed" in dvc(project, "push").stdout
    dvc(copy, "pull")
    assert contents(copy / "data") == contents(project / "data")
