"""Shards where they are staged: kept where they are whole, done again where they are not."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blsp.data import audio, corpus, planning
from blsp.data.packing import TALLY, ShardRows, pack_shard
from blsp.data.records import SPLITS, Utterance, Waveform
from blsp.errors import BlspError
from blsp.params import load_params
from blsp.staging import FolderStaging, S3Staging
from tests.s3 import BUCKET, keys
from tests.trained import PARAMS

RATE_HZ = 8_000
PLACE = f"s3://{BUCKET}/staged"


def waveform(seed):
    return Waveform((0.1 * np.random.default_rng(seed).standard_normal(RATE_HZ)).astype(np.float32), RATE_HZ)


def rows(count=12):
    for seed in range(count):
        split = SPLITS[seed % 3]
        words = f"words of {split}"
        yield Utterance(id=f"u{seed}", audio=functools.partial(waveform, seed), text=words, split=split, source="here")


def settings():
    return load_params(PARAMS).corpus.model_copy(update={"sampling_rate_hz": RATE_HZ, "shard_size": 2})


def execution(place=None):
    return load_params(PARAMS).execution.model_copy(update={"staging": place})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def decoded(monkeypatch):
    """The ids of the rows whose audio was read."""
    ids, load = [], audio.load
    monkeypatch.setattr(audio, "load", lambda row, *rest: ids.append(row.id) or load(row, *rest))
    return ids


KILLED = """
import os
from blsp import staging
from tests.data.test_packing import PLACE, corpus, execution, rows, settings
stored, store = 0, staging.S3Staging.store
def store_or_die(*arguments):
    global stored
    stored += 1
    if stored == 5:  # of three a shard
        os.kill(os.getpid(), 9)
    return store(*arguments)
staging.S3Staging.store = store_or_die
corpus.pack([rows], settings(), execution(PLACE), "killed")
"""


def test_a_killed_run_keeps_what_it_stored_in_s3(s3, tmp_path, monkeypatch, decoded):
    monkeypatch.chdir(tmp_path)
    report = corpus.pack([rows], settings(), execution(), "local")
    decoded.clear()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": str(PARAMS.parent)}, timeout=120
    )
    assert killed.returncode == -9 and not Path("killed").exists()
    assert sum(key.endswith(TALLY) for key in keys(s3)) == 1 and len(keys(s3)) == 4
    assert corpus.pack([rows], settings(), execution(PLACE), "killed") == report
    assert contents("killed") == contents("local")
    assert sorted(decoded) == sorted({f"u{seed}" for seed in range(12)} - {"u0", "u3"}), "a shard of two is kept"
    assert keys(s3) == []


@pytest.fixture(params=["folder", "s3"])
def staged(request, tmp_path):
    if request.param == "folder":
        return FolderStaging(tmp_path / "staged")
    request.getfixturevalue("s3")
    return S3Staging(PLACE)


def replaced(staged, name, content):
    with staged.workspace() as folder:
        (folder / "other").write_bytes(content)
        staged.store(folder / "other", name)


def stored_files(staged, folder):
    folder.mkdir(exist_ok=True)
    for name in (TALLY, "recording.000000.tar", "cuts.000000.jsonl.gz"):
        (folder / name).unlink(missing_ok=True)
        staged.at("train.000000").fetch(name, folder / name)
    return contents(folder)


@pytest.mark.parametrize("damage", [lambda content: content[:-3], lambda content: content.replace(b"0", b"1")])
@pytest.mark.parametrize("name", [TALLY, "recording.000000.tar", "cuts.000000.jsonl.gz"])
def test_a_shard_that_was_cut_or_altered_is_done_again(staged, tmp_path, decoded, name, damage):
    shard = ShardRows("train", 0, tuple(rows(2)), (0, 1))
    tally = pack_shard(shard, settings(), staged)
    whole = stored_files(staged, tmp_path / "fetched")
    assert pack_shard(shard, settings(), staged) == tally and decoded == ["u0", "u1"]
    replaced(staged, f"train.000000/{name}", damage(whole[name]))
    assert pack_shard(shard, settings(), staged) == tally and decoded == ["u0", "u1"] * 2
    assert stored_files(staged, tmp_path / "fetched") == whole
    other = ShardRows("train", 0, tuple(rows(1)), (0,))
    assert pack_shard(other, settings(), staged).rows == 1 and decoded == ["u0", "u1"] * 2 + ["u0"]


def test_an_object_altered_behind_its_checksum_stops_the_run_and_the_next_mends_it(s3, tmp_path, monkeypatch, decoded):
    monkeypatch.chdir(tmp_path)
    corpus.pack([rows], settings(), execution(), "local")

    def altering(tally, staged):
        if (tally.split, tally.number) == ("train", 1):
            key = next(key for key in keys(s3) if key.endswith("train.000001/recording.000000.tar"))
            found = s3.get_object(Bucket=BUCKET, Key=key)
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"?" + found["Body"].read()[1:], Metadata=found["Metadata"])

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_check_staged", altering)
        with pytest.raises(BlspError, match=r"/train.000001/recording.000000.tar: was cut, altered .* run it again"):
            corpus.pack([rows], settings(), execution(PLACE), "cluster")
    assert not Path("cluster").exists()
    decoded.clear()
    corpus.pack([rows], settings(), execution(PLACE), "cluster")
    assert contents("cluster") == contents("local") and decoded == ["u6", "u9"]


def test_a_worker_that_lacks_the_files_or_the_folder_of_the_run_is_refused(tmp_path, decoded):
    shard = ShardRows("train", 0, tuple(rows(2)), (0, 1), witness=tmp_path / "clip.wav")
    with pytest.raises(BlspError, match=r"clip.wav: .* has no such file, .*workers must have the sources"):
        pack_shard(shard, settings(), FolderStaging(tmp_path / "there"))
    (tmp_path / "clip.wav").touch()
    tally = pack_shard(shard, settings(), FolderStaging(tmp_path / "there"))
    corpus._check_staged(tally, FolderStaging(tmp_path / "there"))
    with pytest.raises(BlspError, match=r"here: a worker stored train.000000 there, .*staging .*BLSP_SCRATCH"):
        corpus._check_staged(tally, FolderStaging(tmp_path / "here"))


def test_rows_bring_a_file_that_is_there(tmp_path):
    found = Utterance(id="a", audio=tmp_path, text="a", split="train", source="here")
    missing = Utterance(id="b", audio=tmp_path / "nowhere", text="b", split="train", source="here")
    sources = [lambda: iter([missing, found, *rows(1)])]
    survey = planning.survey(sources, settings())
    planned = planning.plan(sources, settings().model_copy(update={"shard_size": 500}), survey, {}, lambda *_: None)
    assert [shard.witness for shard in planned] == [tmp_path]
