"""Sources in S3."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from blsp.data import audio, places, shards
from blsp.data.records import SPLITS, Unusable
from blsp.data.sources import rows
from blsp.errors import BlspError
from blsp.params import Source, load_params
from tests.data.sources.trees import pack_all
from tests.faults import passed, truncated, truncated_unseen, unanswered
from tests.s3 import left_over, slow_down, upload
from tests.trained import PARAMS

RATE_HZ = 8_000


def noise(seed=0, duration_s=1.0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE_HZ))).astype(np.float32)


def put_clip(s3, key="a.wav", seed=0):
    shortly = Path(os.environ["TMPDIR"]) / "clip.wav"
    soundfile.write(shortly, noise(seed), RATE_HZ, subtype="FLOAT")
    s3.upload_file(str(shortly), "speech", key)
    shortly.unlink()
    s3.proxy.log.clear()
    return places.place(f"s3://speech/{key}")


def manifest(folder, count=6):
    (folder / "clips").mkdir(parents=True)
    lines = []
    for n in range(count):
        soundfile.write(folder / "clips" / f"{n}.wav", noise(n), RATE_HZ, subtype="FLOAT")
        split = SPLITS[n % 3]
        lines.append({"audio": f"clips/{n}.wav", "text": f"words of {split}", "id": f"u{n}", "split": split})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def packed(source, name):
    settings = load_params(PARAMS).corpus.model_copy(update={"sampling_rate_hz": RATE_HZ})
    return pack_all(settings, lambda: rows(source, None), folder=name)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("faults", [[], [slow_down, truncated, passed, unanswered, passed, slow_down, slow_down] * 3])
def test_a_manifest_packs_to_the_same_bytes_from_s3_whatever_happens_on_the_way(s3, tmp_path, faults):
    folder = manifest(tmp_path / "mine")
    upload(s3, folder, "corpora/mine")
    here = packed(Source(name="manifest", path=str(folder / "manifest.jsonl")), tmp_path / "here")
    s3.proxy.faults.extend(faults)
    there = packed(Source(name="manifest", path="s3://speech/corpora/mine/manifest.jsonl"), tmp_path / "there")
    assert there["rows_kept"] == here["rows_kept"] == 6
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert {fault for _, fault in s3.proxy.log} >= {fault.__name__ for fault in faults}
    assert left_over() == []


@pytest.mark.parametrize("fault", [slow_down, truncated, unanswered, truncated_unseen])
def test_what_is_not_whole_is_never_decoded(s3, monkeypatch, fault):
    monkeypatch.setattr(places, "ATTEMPTS", 3)
    monkeypatch.setattr("time.sleep", lambda _: None)
    clip = put_clip(s3)
    s3.proxy.faults.extend([fault] * 2)
    assert np.array_equal(audio.decode(clip)[0], noise())
    assert s3.proxy.log == [("GET", fault.__name__)] * 2 + [("GET", "")]
    places.content.cache_clear()
    s3.proxy.faults.extend([fault] * 100)
    with pytest.raises(BlspError, match=r"s3://speech/a.wav: S3 does not give it .* run again when the server answers"):
        audio.decode(clip)
    assert len(s3.proxy.faults) == 100 - 3


def test_a_manifest_shorter_than_its_checksum_says_stops_the_run(s3, tmp_path):
    upload(s3, manifest(tmp_path / "mine"), "mine")
    s3.proxy.faults.append(truncated_unseen)
    with pytest.raises(BlspError, match="s3://speech/mine/manifest.jsonl: S3 does not give it .*checksum"):
        list(rows(Source(name="manifest", path="s3://speech/mine/manifest.jsonl"), None))
    assert left_over() == []


def test_a_missing_object_is_one_row_and_a_missing_bucket_the_whole_run(s3):
    with pytest.raises(Unusable, match="s3://speech/nowhere.wav: no such object") as caught:
        audio.decode(places.place("s3://speech/nowhere.wav"))
    assert caught.value.reason == "missing_file"
    with pytest.raises(BlspError, match=r"s3://nobody/a.wav: .*NoSuchBucket.*check the bucket"):
        audio.decode(places.place("s3://nobody/a.wav"))


def test_segments_of_one_file_fetch_it_once(s3):
    clip = put_clip(s3)
    for start in (0.0, 0.25, 0.5):
        samples, _ = audio.decode(clip, start, start + 0.25)
        assert np.array_equal(samples, noise()[int(start * RATE_HZ) : int((start + 0.25) * RATE_HZ)])
    assert s3.proxy.log == [("GET", "")]
    assert left_over() == []


def test_names_lead_from_the_manifest_within_s3_and_between():
    found = places.place("s3://speech/a/b/manifest.jsonl")
    assert str(places.beside(found, "clips/1 é?.wav")) == "s3://speech/a/b/clips/1 é?.wav"
    assert str(places.beside(found, "../../../x/./1.wav")) == "s3://speech/x/1.wav"
    assert str(places.beside(found, "s3://other/1.wav")) == "s3://other/1.wav"
    assert places.beside(found, "/here/1.wav") == Path("/here/1.wav")
    assert str(places.beside(places.place("s3://speech/manifest.jsonl"), "1.wav")) == "s3://speech/1.wav"
    assert places.beside(Path("a/manifest.jsonl"), "1.wav") == Path("a/1.wav")
    assert str(places.beside(Path("a/manifest.jsonl"), "s3://other/1.wav")) == "s3://other/1.wav"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("manifest", "s3://speech/nowhere: .*does not exist.*; name a manifest"),
        ("lhotse", "s3://speech/nowhere: no lhotse manifest"),
        ("huggingface", "s3://speech/nowhere: looked for \\*.parquet"),
    ],
)
def test_a_place_that_holds_nothing_is_named(s3, name, message):
    with pytest.raises(BlspError, match=message):
        list(rows(Source(name=name, path="s3://speech/nowhere"), None))


def test_without_credentials_one_is_told_where_they_belong(s3, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    places._client.cache_clear()
    with pytest.raises(BlspError, match="s3://speech/m.jsonl: .*redentials.* in the environment"):
        list(rows(Source(name="manifest", path="s3://speech/m.jsonl"), None))


def test_a_packed_corpus_in_s3_is_a_source_of_lhotse(s3, tmp_path):
    folder = manifest(tmp_path / "mine")
    packed(Source(name="manifest", path=str(folder / "manifest.jsonl")), tmp_path / "here")
    upload(s3, tmp_path / "here", "packed")
    s3.proxy.faults.extend([truncated, slow_down, unanswered])
    report = packed(Source(name="lhotse", path="s3://speech/packed"), tmp_path / "there")
    assert report["rows_kept"] == 6
    for split in SPLITS:
        here, there = (list(shards.load_cuts(split, corpus_dir=tmp_path / name)) for name in ("here", "there"))
        assert [cut.id for cut in here] == [cut.id for cut in there] and here
        for one, two in zip(here, there, strict=True):
            assert np.array_equal(one.load_audio(), two.load_audio())
    assert left_over() == []


def test_parquet_files_in_s3_are_a_source_of_huggingface(s3, tmp_path):
    for name, seeds in (("train-0", (0, 1)), ("train-1", (2,)), ("test-0", (3,))):
        table = {"audio": [], "sentence": []}
        for seed in seeds:
            soundfile.write(tmp_path / "clip.wav", noise(seed), RATE_HZ, subtype="FLOAT")
            table["audio"].append({"bytes": (tmp_path / "clip.wav").read_bytes(), "path": None})
            table["sentence"].append(f"sentence {seed}")
        (tmp_path / "mine" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / "mine" / "data" / f"{name}.parquet")
    upload(s3, tmp_path / "mine", "mine")
    s3.proxy.faults.extend([truncated, slow_down, unanswered])
    source = Source(name="huggingface", path="s3://speech/mine")
    found = list(rows(source, None))
    assert [(row.id, row.split, row.text) for row in found] == [
        ("mine-test-00000000", "test", "sentence 3"),
        ("mine-train-00000000", "train", "sentence 0"),
        ("mine-train-00000001", "train", "sentence 1"),
        ("mine-train-00000002", "train", "sentence 2"),
    ]
    assert np.array_equal(audio.load(found[3], RATE_HZ), noise(2))
    assert left_over() == []
    assert [vars(row) for row in rows(source, None)] == [vars(row) for row in found]
