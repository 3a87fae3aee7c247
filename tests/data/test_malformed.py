"""What people have by mistake, or are handed: each case is one dropped row with its reason, or one clear message.

Bad rows lie beside good ones in one manifest, which goes through the whole stage.
"""

import functools
import json
import os
import struct
import tracemalloc
from importlib.metadata import version

import boto3
import moto
import numpy as np
import pytest
import soundfile

from blsp.data import audio, places, shards
from blsp.data.index import load_index
from blsp.data.records import SPLITS
from blsp.data.sources import rows
from blsp.errors import BlspError
from blsp.params import Source, load_params
from tests.data.sources.trees import FORMATS, pack_all
from tests.trained import PARAMS

RATE_HZ = 16_000
GOOD = [f"good{number}" for number in range(6)]


def noise(duration_s=1.0, channels=1, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal((round(duration_s * RATE_HZ), channels))).astype("f4")


class Mine:
    """A manifest with two good rows a split, and what is added to them."""

    def __init__(self, folder):
        self.folder, self.lines, self.expected = folder / "mine", [], []
        self.folder.mkdir()
        for number, id_ in enumerate(GOOD):
            self.clip(f"{id_}.wav", noise(seed=number))
            self.add({"audio": f"{id_}.wav", "id": id_, "text": f"open the box {number}", "split": SPLITS[number % 3]})

    def clip(self, name, samples=None, form=".wav"):
        path = self.folder / name
        soundfile.write(path, noise(seed=99) if samples is None else samples, RATE_HZ, **FORMATS[form])
        return path

    def add(self, line, reason=None, detail=""):
        """One more line (bytes as they are, else as JSON): dropped for this, or kept; a row's text is its own."""
        if isinstance(line, dict):
            line = json.dumps({"text": f"close the box {len(self.lines)}", "split": "train"} | line).encode()
        self.lines.append(line)
        if reason:
            self.expected.append((len(self.lines), reason, detail))

    def pack(self, **changes):
        """The report; each row is what was expected of it, and the good ones are in the corpus."""
        path = self.folder / "m.jsonl"
        path.write_bytes(b"\n".join(self.lines) + b"\n")
        report = packed(Source(name="manifest", path=str(path)), self.folder.parent / "corpus", **changes)
        assert report["rows_in"] == len(self.lines) == report["rows_kept"] + sum(report["dropped"].values())
        assert [row["reason"] for row in report["dropped_rows"]] == [reason for _, reason, _ in self.expected]
        for row, (number, _, detail) in zip(report["dropped_rows"], self.expected, strict=True):
            assert detail in row["detail"], (number, row)
            assert row["id"] and len(row["detail"]) < 1100
        kept = [cut.id for split in SPLITS for cut in shards.load_cuts(split, corpus_dir=self.folder.parent / "corpus")]
        assert set(GOOD) <= set(kept) and len(kept) == report["rows_kept"]
        return report


def packed(source, folder, **changes):
    settings = load_params(PARAMS).corpus.model_copy(update=changes)
    return pack_all(settings, lambda: rows(source, None), folder=folder)


@pytest.fixture
def mine(tmp_path):
    return Mine(tmp_path)


BROKEN = {  # form -> what is left of the file's bytes, and what is said of it
    ".wav": (0.5, "broken off, 50% of it are here"),
    ".flac": (0.5, "flac decoder lost sync"),
    ".mp3": (0.5, "broken off after"),
    ".opus": (0.9, "its last Ogg page is missing"),
    ".sph": (0.5, "broken off, 4"),
}


def test_truncated_files(mine):
    for form, (share, detail) in BROKEN.items():
        path = mine.clip(f"cut{form}", noise(3, seed=98), form)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        mine.add({"audio": path.name}, "undecodable", detail)
        path = mine.clip(f"half{form}", noise(3, seed=98), form)
        content = path.read_bytes()
        path.write_bytes(content[:64])
        mine.add({"audio": path.name}, "undecodable", path.name)
    for name, size in (("empty.wav", 0), ("header.wav", 44), ("piped.wav", None)):
        path = mine.clip(name)
        path.write_bytes(path.read_bytes()[:size])
    mine.add({"audio": "empty.wav"}, "undecodable", "empty.wav")
    mine.add({"audio": "header.wav"}, "empty_audio", "holds no samples")
    content = bytearray((mine.folder / "piped.wav").read_bytes())  # ffmpeg into a pipe: it cannot come back to the size
    content[content.index(b"data") + 4 :][:4] = b"\xff" * 4
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = b"\xff" * 4
    (mine.folder / "piped.wav").write_bytes(content)
    mine.add({"audio": "piped.wav", "id": "piped"})
    # What is cut out of a broken file before its end is whole.
    mine.add({"audio": "cut.wav", "id": "before", "start_s": 0, "end_s": 1})
    mine.add({"audio": "cut.wav", "id": "behind", "start_s": 1, "end_s": 2}, "segment_outside_audio", "lasts 1.5")
    mine.pack()


def test_names_that_lie(mine):
    for name, form in (("flac.wav", ".flac"), ("wav.mp3", ".wav"), ("mp3.wav", ".mp3"), ("opus.txt", ".opus")):
        mine.clip(name, noise(seed=len(name)), form)
        mine.add({"audio": name, "id": name})
    mine.clip("headerless.raw")
    mine.add({"audio": "headerless.raw"}, "undecodable", "headerless.raw")
    (mine.folder / "words.wav").write_text("turn on the light\n" * 400)
    mine.add({"audio": "words.wav"}, "undecodable", "words.wav")
    mine.add({"audio": "m.jsonl"}, "undecodable", "m.jsonl")
    mine.pack()


def header(path, **fields):
    """The file with other numbers in its header, at their places in a wav."""
    content = bytearray(path.read_bytes())
    for name, value in fields.items():
        form, at = {"channels": ("<H", 22), "rate_hz": ("<I", 24)}[name]
        struct.pack_into(form, content, at, value)
    path.write_bytes(content)
    return path.name


def test_numbers_that_cannot_be(mine):
    for number, rate_hz in enumerate((0, 1, 2**31 - 1, 1_999_993, 2**32 - 1)):
        name = header(mine.clip(f"rate{number}.wav"), rate_hz=rate_hz)
        known = rate_hz not in (0, 2**32 - 1)
        mine.add({"audio": name}, "bad_sampling_rate" if known else "undecodable", f"{rate_hz} Hz" if known else name)
    mine.add({"audio": header(mine.clip("none.wav"), channels=0)}, "undecodable", "none.wav")
    mine.clip("eight.wav", noise(channels=8))
    mine.add({"audio": "eight.wav", "id": "eight"})
    for value in (np.nan, np.inf, -np.inf):
        samples = noise()
        samples[100] = value
        soundfile.write(mine.folder / f"{value}.wav", samples, RATE_HZ, subtype="FLOAT")
        mine.add({"audio": f"{value}.wav"}, "not_finite", "1 of 16000 samples")
    mine.pack()
    (cut,) = (cut for cut in shards.load_cuts("train", corpus_dir=mine.folder.parent / "corpus") if cut.id == "eight")
    assert cut.load_audio()[0] == pytest.approx(noise(channels=8).mean(axis=1), abs=1e-4)


def test_three_hours_are_neither_decoded_to_be_dropped_nor_for_a_segment_of_them(mine):
    rate_hz, hours = 8_000, 3
    path = mine.folder / "long.wav"
    soundfile.write(path, np.zeros(1, np.int16), rate_hz)
    size = 2 * rate_hz * 3600 * hours
    content = bytearray(path.read_bytes()[:44])
    struct.pack_into("<I", content, 4, size + 36)
    struct.pack_into("<I", content, 40, size)
    starts = (0, 5000, 3600 * hours - 2)
    with path.open("r+b") as stream:  # a file with holes, but for what is said in it
        stream.write(content)
        stream.truncate(44 + size)
        for start in starts:
            stream.seek(44 + 2 * rate_hz * start)
            stream.write((0.1 * np.random.default_rng(start).standard_normal(2 * rate_hz) * 2**15).astype("<i2"))
    mine.add({"audio": "long.wav"}, "too_long", "10800.00 s, more than 30 s")
    for start in starts:
        mine.add({"audio": "long.wav", "id": f"at {start}", "start_s": start, "end_s": start + 2})
    mine.pack()  # once, so that what is loaded and kept for good is not counted
    tracemalloc.start()
    try:
        mine.pack()
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_what_is_no_file_or_not_ours(mine, monkeypatch):
    folder = mine.folder
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "round").symlink_to(folder)
    (folder / "linked.wav").symlink_to(mine.clip("behind.wav"))
    mine.add({"audio": "nowhere.wav"}, "missing_file", "no such file")
    mine.add({"audio": "folder.wav"}, "missing_file", "a folder")
    mine.add({"audio": "pipe.wav"}, "missing_file", "no regular file")
    mine.add({"audio": "loop.wav"}, "missing_file", "loop.wav")
    mine.add({"audio": "/".join(["round"] * 60) + "/behind.wav"}, "missing_file", "round")
    mine.add({"audio": "x" * 5000 + ".wav"}, "unreadable", "File name too long")
    mine.add({"audio": "good0.wav/1.wav"}, "missing_file", "good0.wav/1.wav")
    mine.add({"audio": "linked.wav", "id": "linked"})
    mine.clip("closed.wav").chmod(0)
    mine.add({"audio": "closed.wav", "id": "closed"}, "unreadable", "closed.wav: Permission denied")
    load = audio.load

    def unprivileged(row, *rest):  # root may read everything
        if row.id != "closed" or os.geteuid():
            return load(row, *rest)
        os.seteuid(65534)
        try:
            return load(row, *rest)
        finally:
            os.seteuid(0)

    monkeypatch.setattr(audio, "load", unprivileged)
    mine.pack()


def test_paths_that_lead_elsewhere(mine, tmp_path):
    soundfile.write(tmp_path / "private.wav", noise(), RATE_HZ)
    for path in ("../../../../../../../etc/passwd", "/etc/passwd", "../private.wav", str(tmp_path / "private.wav")):
        mine.add({"audio": path}, "bad_path", f"{path!r} does not lie in {mine.folder}")
    mine.add({"audio": "~/private.wav"}, "missing_file", "~/private.wav")
    mine.add({"audio": "s3://speech/private.wav"}, "bad_path", "audio_root")
    mine.add({"audio": "https://example.org/1.wav"}, "missing_file", "no such file")
    mine.add({"audio": "$HOME/1.wav;touch hacked|"}, "missing_file", "no such file")
    mine.add({"audio": "1\0.wav"}, "missing_key", "audio")
    mine.pack()


def test_lines_that_are_no_rows(mine):
    mine.add(b'{"audio": "good0.wav", "text": "half', "not_json", "line 7")
    mine.add(b"[" * 50_000, "not_json", "recursion")
    mine.add(b'["good0.wav", "a list"]', "not_json", "found ['good0.wav', 'a list'] (list)")
    mine.add(b"null", "not_json", "found None")
    mine.add(b"RIFF\x00\x00WAVE", "not_json", "line 11")
    mine.add('{"audio": "good0.wav", "text": "café"}'.encode("latin-1"), "not_json", "utf-8")
    mine.add('{"audio": "good0.wav", "text": "wide"}'.encode("utf-16-le"), "not_json", "line 13")
    mine.add(b'{"audio": "good0.wav", "text": "many digits", "end_s": ' + b"9" * 5000 + b"}", "not_json", "digits")
    mine.add(b'{"text": "no audio", "split": "train"}', "missing_key", "audio is missing")
    mine.add(b'{"audio": "good0.wav"}', "missing_key", "text is missing")
    mine.add({"audio": "good0.wav", "text": None}, "missing_key", "text is missing")
    mine.add({"audio": "good0.wav", "text": 5}, "wrong_type", "text: expected a string, found 5 (int)")
    mine.add({"audio": ["good0.wav"]}, "wrong_type", "audio")
    mine.add({"audio": "good0.wav", "speaker": {"name": "ann"}}, "wrong_type", "speaker")
    mine.add({"audio": "good0.wav", "end_s": "1.5"}, "wrong_type", "end_s: expected seconds, found '1.5' (str)")
    for seconds in (b"NaN", b"Infinity", b"1e999", b"1" + b"0" * 400):
        line = b'{"audio": "good0.wav", "text": "seconds", "start_s": ' + seconds + b"}"
        mine.add(line, "wrong_type", "start_s: expected seconds")
    mine.add({"audio": "good0.wav", "start_s": -1}, "bad_segment", "-1 to None s")
    mine.add({"audio": "good0.wav", "start_s": 0.5, "end_s": 0.2}, "bad_segment", "0.5 to 0.2 s")
    mine.add({"audio": "good0.wav", "start_s": 0.5, "end_s": 9}, "segment_outside_audio", "the audio lasts 1.00 s")
    mine.add({"audio": "good0.wav", "start_s": 7}, "segment_outside_audio", "the audio lasts 1.00 s")
    mine.pack()


def test_a_manifest_of_other_tools_is_read(mine):
    mine.lines[0] = b"\xef\xbb\xbf" + mine.lines[0]
    mine.lines = [line + b"\r" for line in mine.lines]
    assert mine.pack()["rows_kept"] == len(GOOD)


def test_texts_that_are_none(mine):
    mine.clip("more.wav", noise(seed=5))
    for text, reason in (
        ("", "empty_text"),
        (" \t", "empty_text"),
        ("?!", "empty_text"),
        ("\0\x07", "empty_text"),
        ("<SIL> <PERIOD>", "noise_only"),
        ("(Laughter) [MUSIC] <unk>", "noise_only"),
        ("caf\ufffd closed", "not_utf8"),
        ("half a \ud800", "wrong_type"),
        ("word " * 30_000, "text_too_long"),
        ("word " * 10_000, "too_many_chars_per_s"),
        ("a", "too_few_chars_per_s"),
    ):
        mine.add({"audio": "more.wav", "text": text, "id": str(len(mine.lines))}, reason)
    mine.clip("nul.wav", noise(seed=7))
    mine.add({"audio": "nul.wav", "id": "nul", "text": "shut\0 the \x1b[31m\ufeffdoor"})
    mine.pack(normalizer="none")
    texts = [cut.supervisions[0].text for cut in shards.load_cuts("train", corpus_dir=mine.folder.parent / "corpus")]
    assert texts[-1] == "shut the [31m door"


def test_ids_name_members_of_a_tar(mine):
    for id_ in ("../up", "/etc/passwd", "a//b", "a/../b", "a\nb", "", "x" * 201, "nul\0", "a/.", "./a"):
        reason = None if id_ == "" else "bad_id"  # none at all: one is made
        mine.clip(f"id{len(mine.lines)}.wav", noise(seed=len(mine.lines)))
        mine.add({"audio": f"id{len(mine.lines)}.wav", "id": id_}, reason)
    mine.add({"audio": "good1.wav", "id": "good0"}, "duplicate_id", "an earlier row has this id")
    good = ["deep/er/a.b", "x" * 200, "ü" * 200, "日本語/音声 1", "a.json", "a", ".", "..", "a.flac", "C:\\a", "-rf"]
    for seed, id_ in enumerate(good, start=50):
        mine.clip(f"{seed}.wav", noise(seed=seed))
        mine.add({"audio": f"{seed}.wav", "id": id_})
    mine.pack()
    folder = mine.folder.parent / "corpus"
    cuts = {cut.id: cut for cut in shards.load_cuts("train", corpus_dir=folder)}
    index = load_index("train", [], folder)
    at = {id_: row for row, id_ in enumerate(index.table["id"].to_pylist())}
    for seed, id_ in enumerate(good, start=50):
        assert cuts[id_].load_audio()[0] == pytest.approx(noise(seed=seed)[:, 0], abs=1e-4)
        assert np.array_equal(index.load_samples(at[id_]), cuts[id_].load_audio()[0])


def test_digits_are_said_as_words_and_keys_of_no_meaning_are_counted(mine):
    mine.clip("digits.wav", noise(3.4, seed=60))
    mine.add({"audio": "digits.wav", "text": "0351", "id": "digits", "speeker": "ann", "licence": "MIT"})
    (source,) = mine.pack()["sources"]
    assert source["ignored"] == {"speeker": 1}
    assert source["without"] == {"licence": len(GOOD), "language": len(GOOD) + 1, "speaker": len(GOOD) + 1}


def test_a_language_is_any_word_and_decides_the_normaliser(mine):
    for seed, language in enumerate(("en-GB", "de", "klingon", "", None, "../x"), start=70):
        mine.clip(f"{seed}.wav", noise(seed=seed))
        text = f"Mr. Box {seed} isn't red"
        mine.add({"audio": f"{seed}.wav", "id": str(seed), "text": text, "language": language})
    report = mine.pack(normalizer="whisper")
    texts = {c.id: c.supervisions[0].text for c in shards.load_cuts("train", corpus_dir=mine.folder.parent / "corpus")}
    assert {texts[str(seed)] for seed in range(70, 76)} == {f"Mr. Box {seed} isn't red" for seed in range(70, 76)}
    package = f"whisper-normalizer {version('whisper-normalizer')}"
    assert report["normalizers"] == {
        "whisper_basic": {"rows": len(GOOD) + 5, "version": package},
        "whisper_english": {"rows": 1, "version": package},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"m\.jsonl: No such file or directory; name a manifest, JSONL or CSV"),
        (b"", "of 0 rows .* none is left for train and test"),
        (b"\n \r\n", "of 0 rows"),
        (b'{"audio": "1.wav", "text": "a", "split": "eval"}', r"m\.jsonl, line 1: unknown split 'eval'; write one of"),
        (b'{"audio": "1.wav", "words": "a"}', "none is left(.|\n)*missing_key: 1, .*the row has audio, words"),
        (b"\x1f\x8b\x08 no text", "none is left for train and test(.|\n)*not_json: 1, first m.jsonl:1"),
        (
            b'{"audio": "/there/1.wav", "text": "a"}',
            "none is left(.|\n)*bad_path: 1, .*name a folder .* audio_root",
        ),
        ("folder", r"m\.jsonl: Is a directory; name a manifest"),
        ("pipe", r"m\.jsonl: no regular file, and it is read several times; save it as one"),
        ("loop", r"m\.jsonl: Too many levels of symbolic links"),
    ],
)
def test_a_manifest_that_is_wrong_as_a_whole_is_one_message(tmp_path, content, message):
    path = tmp_path / "m.jsonl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        {"folder": path.mkdir, "pipe": functools.partial(os.mkfifo, path), "loop": lambda: path.symlink_to(path)}[
            content
        ]()
    with pytest.raises(BlspError, match=message):
        packed(Source(name="manifest", path=str(path)), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_packed_manifest_cut_in_the_middle_is_one_message(mine):
    mine.pack()
    cuts = mine.folder.parent / "corpus" / "train" / "cuts.000000.jsonl.gz"
    for broken in (cuts.read_bytes()[:-20], b"no gzip"):
        cuts.write_bytes(broken)
        with pytest.raises(BlspError, match=r"cuts\.000000\.jsonl\.gz: broken off or not gzip .*; copy it again"):
            packed(Source(name="lhotse", path=str(mine.folder.parent / "corpus")), mine.folder.parent / "again")
    assert not (mine.folder.parent / "again").exists()


def test_an_object_that_is_not_in_s3_is_one_row_and_a_bucket_one_message(mine, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    places._client.cache_clear()
    places.content.cache_clear()
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="speech")
        client.put_object(Bucket="speech", Key="empty.wav", Body=b"")
        (mine.folder / "m.jsonl").write_bytes(b"\n".join(mine.lines))
        for path in sorted(mine.folder.iterdir()):
            client.upload_file(str(path), "speech", f"mine/{path.name}")
        more = [{"audio": name, "text": f"in s3 {name}"} for name in ("nowhere.wav", "../empty.wav", "/etc/passwd")]
        lines = b"\n".join([*mine.lines, *(json.dumps(line).encode() for line in more)])
        client.put_object(Bucket="speech", Key="mine/m.jsonl", Body=lines)
        found = packed(Source(name="manifest", path="s3://speech/mine/m.jsonl"), mine.folder.parent / "corpus")
        assert [row["reason"] for row in found["dropped_rows"]] == ["missing_file", "bad_path", "bad_path"]
        root = Source(name="manifest", path="s3://speech/mine/m.jsonl", audio_root="s3://speech")
        found = packed(root, mine.folder.parent / "corpus")
        assert [row["reason"] for row in found["dropped_rows"]] == ["missing_file", "undecodable", "bad_path"]
        for name in ("nobody/m.jsonl", "speech/nowhere.jsonl"):
            with pytest.raises(BlspError, match=f"s3://{name}"):
                packed(Source(name="manifest", path=f"s3://{name}"), mine.folder.parent / "corpus")
    places._client.cache_clear()
    places.content.cache_clear()


def test_a_source_may_be_split_by_speakers_whatever_it_says_of_splits(mine):
    for number in range(len(GOOD)):
        mine.lines[number] = mine.lines[number].replace(b'"text"', b'"speaker": "%d", "text"' % number)
    path = mine.folder / "m.jsonl"
    path.write_bytes(b"\n".join(mine.lines))
    found = list(rows(Source(name="manifest", path=str(path), splits="speakers"), None))
    assert [row.split for row in found] == [None] * len(GOOD)
    report = packed(Source(name="manifest", path=str(path), splits="speakers"), mine.folder.parent / "corpus")
    assert sum(figures["speakers"] for figures in report["splits"].values()) == report["rows_kept"] == len(GOOD)


def test_a_sentence_is_there_as_often_as_one_wants(mine):
    for seed in range(80, 84):
        mine.clip(f"{seed}.wav", noise(seed=seed))
        kept, text = seed < 82, "Say, it again!" if seed % 2 else "say it again"
        mine.add(
            {"audio": f"{seed}.wav", "text": text, "id": str(seed)},
            None if kept else "sentence_repeated",
            f"{text!r} is in train 2 times already",
        )
    mine.pack(max_rows_per_sentence=2)
    mine.expected.clear()
    mine.pack()
