"""Sources in S3: a real S3 server in a process of its own, behind a proxy that throttles and breaks off."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
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
from tests.trained import PARAMS

RATE_HZ = 8_000
SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to S3, each GET of an object with the next of the faults, while there are any."""

    protocol_version = "HTTP/1.1"
    server_port: int
    faults: list[str]
    log: list[tuple[str, str]]

    def do_GET(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=30)
        length = int(self.headers.get("Content-Length") or 0)
        connection.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
        answer = connection.getresponse()
        status, headers, body = answer.status, dict(answer.getheaders()), answer.read()
        of_object = self.path.count("/") > 1 and self.command == "GET"
        fault = self.faults.pop(0) if self.faults and of_object else ""
        self.log.append((self.command, fault))
        if fault == "reset":
            self.close_connection = True
            return
        if fault == "slow_down":
            status, headers, body = 503, {"Content-Type": "application/xml"}, SLOW_DOWN
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(body) // 2 if fault == "short" else len(body))
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "keep-alive"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault in ("drop", "short") else body)
        self.close_connection = fault == "drop"

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_):
        pass


def free_port():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def proxy():
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    front = ThreadingHTTPServer(("127.0.0.1", 0), type("P", (Proxy,), {"server_port": port, "faults": [], "log": []}))
    threading.Thread(target=front.serve_forever, daemon=True).start()
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert server.poll() is None, "the S3 server did not start"
            time.sleep(0.1)
        yield front
    finally:
        front.shutdown()
        front.server_close()
        server.terminate()
        server.wait(10)


@pytest.fixture
def s3(proxy, monkeypatch, tmp_path):
    """The S3 client of a fresh process, an empty bucket, and the lists of faults to come and of requests made."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    (tmp_path / "tmp").mkdir()
    places._client.cache_clear()
    places.content.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="speech")
    client.faults, client.log = proxy.RequestHandlerClass.faults, proxy.RequestHandlerClass.log
    client.faults.clear()
    client.log.clear()
    yield client
    client.faults.clear()
    for found in client.list_objects_v2(Bucket="speech").get("Contents", []):
        client.delete_object(Bucket="speech", Key=found["Key"])
    places._client.cache_clear()


def noise(seed=0, duration_s=1.0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE_HZ))).astype(np.float32)


def upload(s3, folder, prefix):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), "speech", f"{prefix}/{path.relative_to(folder)}")
    s3.log.clear()


def put_clip(s3, key="a.wav", seed=0):
    shortly = Path(os.environ["TMPDIR"]) / "clip.wav"
    soundfile.write(shortly, noise(seed), RATE_HZ, subtype="FLOAT")
    s3.upload_file(str(shortly), "speech", key)
    shortly.unlink()
    s3.log.clear()
    return places.place(f"s3://speech/{key}")


def left_over():
    return [path for path in Path(os.environ["TMPDIR"]).rglob("*") if path.is_file()]


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


@pytest.mark.parametrize("faults", [[], ["slow_down", "drop", "", "reset", "", "slow_down", "slow_down"] * 3])
def test_a_manifest_packs_to_the_same_bytes_from_s3_whatever_happens_on_the_way(s3, tmp_path, faults):
    folder = manifest(tmp_path / "mine")
    upload(s3, folder, "corpora/mine")
    here = packed(Source(name="manifest", path=str(folder / "manifest.jsonl")), tmp_path / "here")
    s3.faults.extend(faults)
    there = packed(Source(name="manifest", path="s3://speech/corpora/mine/manifest.jsonl"), tmp_path / "there")
    assert there["rows_kept"] == here["rows_kept"] == 6
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert {fault for _, fault in s3.log} >= set(faults)
    assert left_over() == []


@pytest.mark.parametrize("fault", ["slow_down", "drop", "reset", "short"])
def test_what_is_not_whole_is_never_decoded(s3, monkeypatch, fault):
    monkeypatch.setattr(places, "ATTEMPTS", 3)
    monkeypatch.setattr("time.sleep", lambda _: None)
    clip = put_clip(s3)
    s3.faults.extend([fault] * 2)
    assert np.array_equal(audio.decode(clip)[0], noise())
    assert s3.log == [("GET", fault)] * 2 + [("GET", "")]
    places.content.cache_clear()
    s3.faults.extend([fault] * 100)
    with pytest.raises(BlspError, match=r"s3://speech/a.wav: S3 does not give it .* run again when the server answers"):
        audio.decode(clip)
    assert len(s3.faults) == 100 - 3


def test_a_manifest_shorter_than_its_checksum_says_stops_the_run(s3, tmp_path):
    upload(s3, manifest(tmp_path / "mine"), "mine")
    s3.faults.append("short")
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
    assert s3.log == [("GET", "")]
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
        ("manifest", "s3://speech/nowhere: .*does not exist.*; name a JSONL file"),
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
    s3.faults.extend(["drop", "slow_down", "reset"])
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
    s3.faults.extend(["drop", "slow_down", "reset"])
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
