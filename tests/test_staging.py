import base64
import hashlib
import os
from pathlib import Path

import pytest

from blsp import staging
from blsp.data import places
from blsp.errors import BlspError
from blsp.params import load_params
from blsp.staging import Contents, FolderStaging, NotWhole, S3Staging
from tests.faults import dropped, dropped_midway, passed, truncated, truncated_unseen, unanswered
from tests.s3 import BUCKET, internal_error, keys, left_over, of_object, slow_down
from tests.trained import PARAMS

LARGE = bytes(range(256)) * 45_000  # three parts of the smallest size that S3 takes


@pytest.fixture(params=["folder", "s3"])
def staged(request, tmp_path):
    if request.param == "folder":
        return FolderStaging(tmp_path / "staged")
    request.getfixturevalue("s3")
    return S3Staging(f"s3://{BUCKET}/staged")


@pytest.fixture
def in_s3(s3, monkeypatch):
    monkeypatch.setattr(staging, "PART_BYTES", 5 * 2**20)
    s3.proxy.aim = of_object
    return S3Staging(f"s3://{BUCKET}/staged")


def store(staged, name, content):
    with staged.workspace() as folder:
        (folder / "made").write_bytes(content)
        return staged.store(folder / "made", name)


def test_what_is_stored_is_fetched_and_cleared(staged, tmp_path):
    beside, staged = staged.at("corpus2"), staged.at("corpus")
    assert staged.contents("one/a.tar") is None
    stored = store(staged, "one/a.tar", b"first")
    assert stored == store(staged, "two/a.tar", b"first") == staged.contents("one/a.tar")
    assert store(staged, "one/a.tar", b"other") != stored
    assert staged.at("one").fetch("a.tar", tmp_path / "a.tar") == staged.contents("one/a.tar")
    assert (tmp_path / "a.tar").read_bytes() == b"other"
    staged.remove("one/a.tar")
    staged.remove("never")
    with pytest.raises(NotWhole, match="one/a.tar: no such"):
        staged.fetch("one/a.tar", tmp_path / "b.tar")
    store(beside, "a.tar", b"kept")
    staged.clear()
    staged.clear()
    assert staged.contents("two/a.tar") is None
    assert beside.contents("a.tar")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "b"))) == []


def test_where_it_lies_is_the_scratch_folder_or_what_params_say(monkeypatch):
    monkeypatch.setenv("BLSP_SCRATCH", "/shared/scratch")
    execution = load_params(PARAMS).execution
    assert staging.staging_of(execution) == FolderStaging(Path("/shared/scratch"))
    in_s3 = execution.model_copy(update={"staging": "s3://bucket/mine"})
    assert staging.staging_of(in_s3) == S3Staging("s3://bucket/mine")


@pytest.mark.parametrize(
    "faults",
    [
        [slow_down, internal_error, slow_down],
        [dropped, dropped_midway, passed, dropped_midway, dropped_midway],
        [unanswered] * 5,  # the part arrived, or the upload began or ended: the client cannot know
        [passed] * 4 + [unanswered],
        [passed] * 4 + [truncated, slow_down],
    ],
)
def test_large_files_arrive_whole_whatever_happens_on_the_way(s3, in_s3, tmp_path, faults):
    s3.proxy.faults += faults
    stored = store(in_s3, "a.tar", LARGE)
    assert s3.proxy.faults == [] and len([method for method, _ in s3.proxy.log if method == "PUT"]) > 2
    s3.proxy.faults += [truncated, passed, slow_down, truncated, dropped, internal_error]
    assert in_s3.fetch("a.tar", tmp_path / "a.tar") == stored == in_s3.contents("a.tar")
    assert s3.proxy.faults == [] and (tmp_path / "a.tar").read_bytes() == LARGE
    assert s3.get_object(Bucket=BUCKET, Key="staged/a.tar")["Body"].read() == LARGE
    assert left_over() == []


def test_s3_is_told_the_sha256_of_each_part(s3, in_s3):
    store(in_s3, "a.tar", LARGE)
    head = s3.head_object(Bucket=BUCKET, Key="staged/a.tar", ChecksumMode="ENABLED")
    parts = [LARGE[start : start + 5 * 2**20] for start in range(0, len(LARGE), 5 * 2**20)]
    of_parts = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
    assert len(parts) == 3 and head["ChecksumSHA256"].partition("-")[0] == base64.b64encode(of_parts).decode()


def test_a_server_that_stays_away_is_named(s3, in_s3, monkeypatch, tmp_path):
    monkeypatch.setattr(places, "ATTEMPTS", 3)
    places._client.cache_clear()
    s3.proxy.faults += [dropped_midway] * 100
    with pytest.raises(BlspError, match="s3://speech/staged/a.tar: S3 does not take it .* run again when the server"):
        store(in_s3, "a.tar", b"small")
    tried = 100 - len(s3.proxy.faults)
    assert tried <= 2 * 3, "three times to store, three times to see whether it is there after all"
    with pytest.raises(BlspError, match="s3://speech/staged/a.tar: S3 does not give it"):
        in_s3.fetch("a.tar", tmp_path / "a.tar")
    s3.proxy.faults.clear()
    assert in_s3.contents("a.tar") is None and not (tmp_path / "a.tar").exists()


def test_half_an_upload_is_no_file_and_is_cleared(s3, in_s3):
    begun = s3.create_multipart_upload(Bucket=BUCKET, Key="staged/a.tar")["UploadId"]
    other = s3.create_multipart_upload(Bucket=BUCKET, Key="other/a.tar")["UploadId"]
    s3.upload_part(Bucket=BUCKET, Key="staged/a.tar", UploadId=begun, PartNumber=1, Body=LARGE[: 5 * 2**20])
    assert in_s3.contents("a.tar") is None
    in_s3.clear()
    assert [one["Key"] for one in s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == ["other/a.tar"]
    s3.abort_multipart_upload(Bucket=BUCKET, Key="other/a.tar", UploadId=other)


@pytest.mark.parametrize("content", [LARGE[:-1], LARGE[:-1] + b"?", b""])
def test_what_was_cut_or_altered_is_not_taken_for_whole(s3, in_s3, tmp_path, content):
    stored = store(in_s3, "a.tar", LARGE)
    s3.put_object(Bucket=BUCKET, Key="staged/a.tar", Body=content)
    assert in_s3.contents("a.tar") != stored
    # As who copies objects from bucket to bucket does it, with what is written about them.
    s3.put_object(Bucket=BUCKET, Key="staged/a.tar", Body=content, Metadata={"sha256": stored.sha256})
    with pytest.raises(NotWhole, match=f"stored were .* but it holds Contents\\(size_bytes={len(content)}"):
        in_s3.fetch("a.tar", tmp_path / "a.tar")
    assert list(tmp_path.glob("*.tar")) == list(tmp_path.glob(".*.tmp")) == []


def test_an_answer_cut_on_the_way_without_a_sign_is_noticed(s3, in_s3, tmp_path):
    stored = store(in_s3, "a.json", b"small")
    s3.proxy.faults += [passed, passed, truncated_unseen]
    with pytest.raises(BlspError, match="a.json: .*"):
        in_s3.fetch("a.json", tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
    assert in_s3.fetch("a.json", tmp_path / "a.json") == stored


def test_clearing_leaves_nothing_whatever_happens_on_the_way(s3, in_s3):
    for number in range(3):
        s3.put_object(Bucket=BUCKET, Key=f"staged/{number}", Body=b"")
    s3.proxy.aim = lambda method, path: True
    s3.proxy.faults += [slow_down, passed, slow_down, unanswered]
    in_s3.clear()
    assert keys(s3) == []


def test_contents_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert Contents.of(tmp_path / "a") == Contents(3, sha256)
    assert os.listdir(tmp_path) == ["a"]
