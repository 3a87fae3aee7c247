import json

import pytest

from blsp.data import shards
from blsp.data.records import Dropped, Utterance
from blsp.data.sources.slurp import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken

SENTENCES = {"train": "turn the kitchen light off", "devel": "play a song", "test": "wake me at eight"}


def sentence(text, *files, **others):
    recordings = [{"file": file, "wer": 0.0, "ent_wer": None, "status": "correct"} for file in files]
    fields = {"slurp_id": 7, "sentence": text, "scenario": "iot", "action": "hue_lightoff", "intent": "iot_off"}
    return {**fields, "recordings": recordings, **others}


def write(place, name, *lines):
    path = place / "dataset" / "slurp" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )


@pytest.fixture
def place(tmp_path):
    place, metadata = tmp_path / "slurp", {}
    for name, text in SENTENCES.items():
        files = [f"audio-{name}-headset.flac", f"audio-{name}.flac"]
        for file in files:
            spoken(place / "audio" / "slurp_real" / file, text)
        write(place, name, sentence(text, *files))
        metadata[name] = {"nlub_id": 1, "recordings": {file: {"usrid": f"FE-{name}"} for file in files}}
    (place / "dataset/slurp/metadata.json").write_text(json.dumps(metadata))
    return place


def test_each_recording_of_a_sentence_is_a_row(place):
    rows = list(read(place))
    assert [(row.id, row.split) for row in rows] == [
        (f"audio-{name}{suffix}", split)
        for name, split in {"train": "train", "devel": "dev", "test": "test"}.items()
        for suffix in ("-headset", "")
    ]
    assert isinstance(rows[1], Utterance)
    assert rows[1].audio == place / "audio/slurp_real/audio-train.flac"
    assert (rows[1].text, rows[1].intent) == (SENTENCES["train"], "iot_hue_lightoff")
    assert (rows[1].speaker, rows[1].language, rows[1].source) == ("FE-train", "en", "slurp")
    assert rows[1].licence == "CC-BY-NC-4.0 AND CC-BY-4.0"


def test_a_recording_that_the_metadata_does_not_name_has_no_speaker(place):
    write(place, "devel", sentence("play a song", "audio-9.flac"))
    assert [row.speaker for row in read(place) if row.split == "dev"] == [None]


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (b"{half", "not_json", "property name"),
        (b"[1]", "not_json", "expected an object"),
        (b'{"sentence": "caf\xe9"}', "not_utf8", "decode"),
        ({"sentence": "hello", "action": "set", "recordings": []}, "missing_key", "scenario"),
        (sentence("hello", "a.flac", action=None), "missing_key", "action"),
        (sentence(5, "a.flac"), "wrong_type", "sentence: expected a string, found 5 (int)"),
        (b'{"sentence": "half \\ud800", "scenario": "a", "action": "b"}', "wrong_type", "sentence"),
        (sentence("hello"), "no_recordings", "'hello'"),
        (sentence("hello", recordings="a.flac"), "no_recordings", "slurp_id 7"),
    ],
)
def test_a_bad_line_is_dropped_with_its_number_and_the_others_stay(place, bad, reason, detail):
    write(place, "devel", sentence("play a song", "audio-1.flac"), bad, sentence("stop it", "audio-2.flac"))
    first, dropped, last = (row for row in read(place) if getattr(row, "split", "dev") == "dev")
    assert isinstance(first, Utterance) and isinstance(last, Utterance) and isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("devel.jsonl:2", reason)
    assert "line 2: " in dropped.detail and detail in dropped.detail


@pytest.mark.parametrize(
    ("recording", "reason"),
    [
        ({"wer": 0}, "missing_key"),
        ({"file": 5}, "wrong_type"),
        ("audio-1.flac", "wrong_type"),
        ({"file": "../audio-1.flac"}, "bad_path"),
        ({"file": "a\n.flac"}, "bad_id"),
    ],
)
def test_a_bad_recording_leaves_the_others_of_its_sentence(place, recording, reason):
    good = {"file": "audio-2.flac"}
    write(place, "devel", sentence("play a song", recordings=[recording, good]))
    dropped, kept = (row for row in read(place) if getattr(row, "split", "dev") == "dev")
    assert isinstance(dropped, Dropped) and isinstance(kept, Utterance)
    assert (dropped.id, dropped.reason, kept.id) == ("slurp_id 7, recording 0", reason, "audio-2")


def test_every_recording_is_packed_or_dropped(place, tmp_path):
    good = sentence(SENTENCES["train"], "audio-train.flac", "audio-train.flac")
    write(place, "train", good, sentence("open it", "audio-none.flac"), sentence(" ", "audio-train2.flac"), b"{")
    (place / "audio/slurp_real/broken.flac").write_bytes(b"fLaC but not really" * 20)
    write(place, "devel", sentence("play a song", "broken.flac", "audio-devel.flac"), sentence("hello"))
    report = packed(read, place, tmp_path / "corpus")
    reasons = "duplicate_id missing_file empty_text not_json undecodable no_recordings"
    assert report["dropped"] == dict.fromkeys(reasons.split(), 1)
    (cut,) = shards.load_cuts("train", corpus_dir=tmp_path / "corpus")
    assert (cut.custom["intent"], cut.supervisions[0].speaker) == ("iot_hue_lightoff", "FE-train")


@pytest.mark.parametrize(
    "content", ["[1]", "{half", '{"1": {"recordings": {"a.flac": {}}}}', '{"1": {"recordings": []}}']
)
def test_metadata_of_another_form_stops_the_run(place, content):
    (place / "dataset/slurp/metadata.json").write_text(content)
    with pytest.raises(BlspError, match=r"metadata\.json"):
        list(read(place))


def test_another_folder_is_named_with_what_was_looked_for(place, tmp_path):
    with pytest.raises(BlspError, match=r"slurp: looked for dataset/slurp/train\.jsonl in .*; name the clone of"):
        list(read(tmp_path))
    (place / "audio/slurp_real").rename(place / "audio/elsewhere")
    with pytest.raises(BlspError, match=r"looked for audio/slurp_real in .*; unpack slurp_real\.tar\.gz"):
        list(read(place))
    (place / "dataset/slurp/metadata.json").unlink()
    with pytest.raises(BlspError, match=r"looked for dataset/slurp/metadata\.json"):
        list(read(place))
