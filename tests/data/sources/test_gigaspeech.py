import json

import pytest

from blsp.data import shards
from blsp.data.records import Utterance
from blsp.data.sources.gigaspeech import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken

DEV, TEST, TRAIN = ["{DEV}"], ["{TEST}"], ["{XL}", "{L}"]


def segment(sid, text, subsets=TRAIN, begin=0.0, end=1.5, **fields):
    times = {"begin_time": begin, "end_time": end}
    return {"sid": sid, "speaker": "N/A", **times, "text_tn": text, "subsets": subsets, **fields}


def recording(aid, *segments, **fields):
    path = f"audio/youtube/P0000/{aid}.opus"
    about = {"format": "opus", "sample_rate": 16000, "channels": 1, "duration": 5.0, "source": "youtube"}
    return {"title": "Über", "path": path, "aid": aid, **about, "segments": list(segments), **fields}


def write_json(place, *recordings):
    place.mkdir(exist_ok=True)
    text = json.dumps({"dataset": "GigaSpeech", "language": "EN", "audios": recordings}, ensure_ascii=False)
    (place / "GigaSpeech.json").write_text(text, encoding="utf-8")


@pytest.fixture
def place(tmp_path):
    """GigaSpeech as it is downloaded: two recordings of a few segments each."""
    place = tmp_path / "GigaSpeech"
    write_json(
        place,
        recording(
            "YOU1",
            segment("YOU1_S1", "TURN ON THE LIGHT <COMMA> PLEASE <PERIOD>", TRAIN, 0.5, 2.0),
            segment("YOU1_S2", "WHERE IS THE GARDEN <QUESTIONMARK>", DEV, 2, 3.5, speaker="7"),
        ),
        recording("YOU2", segment("YOU2_S1", "CLOSE THE DOOR <EXCLAMATIONPOINT>", TEST)),
    )
    spoken(
        place / "audio/youtube/P0000/YOU1.opus",
        "turn on the light please and then show me where the old garden behind the house is",
    )
    spoken(place / "audio/youtube/P0000/YOU2.opus", "close the door and the window")
    return place


def test_every_segment_is_read(place):
    rows = list(read(place))
    assert [(row.id, row.split, row.start_s, row.end_s, row.speaker) for row in rows] == [
        ("YOU1_S1", "train", 0.5, 2.0, None),
        ("YOU1_S2", "dev", 2.0, 3.5, "7"),
        ("YOU2_S1", "test", 0.0, 1.5, None),
    ]
    assert isinstance(rows[0], Utterance)
    assert rows[0].audio == place / "audio/youtube/P0000/YOU1.opus"
    assert (rows[0].language, rows[0].licence) == ("en", "LicenseRef-GigaSpeech-Terms-of-Access")


def test_segments_are_cut_and_tags_become_punctuation(place, tmp_path):
    report = packed(read, place, tmp_path / "corpus", normalizer="none")
    assert report["rows_kept"] == report["rows_in"] == 3
    texts = {}
    for split in ("train", "dev", "test"):
        for cut in shards.load_cuts(split, corpus_dir=tmp_path / "corpus"):
            assert cut.duration == pytest.approx(1.5)
            texts[cut.id] = cut.supervisions[0].text
    assert texts == {
        "YOU1_S1": "TURN ON THE LIGHT, PLEASE.",
        "YOU1_S2": "WHERE IS THE GARDEN?",
        "YOU2_S1": "CLOSE THE DOOR!",
    }


def test_bad_segments_are_dropped_and_all_rows_accounted_for(place, tmp_path):
    faulty = [
        (segment("a", "<SIL>", DEV), "noise_only"),
        (segment("b", "<MUSIC>", TEST), "noise_only"),
        (segment("c", "<NOISE>", DEV), "noise_only"),
        (segment("d", "<OTHER>", TEST), "noise_only"),
        (segment("e", " "), "empty_text"),
        (segment("YOU1_S1", "SAID AGAIN"), "duplicate_id"),
        (segment("f", "BEYOND THE END", TRAIN, 100, 101), "segment_outside_audio"),
        (segment("g", "TURNED ROUND", TRAIN, 2, 1), "bad_segment"),
        (segment("h", "BEFORE THE BEGINNING", TRAIN, -1, 1), "bad_segment"),
        (segment("i", "NO TIME", TRAIN, "0.5"), "wrong_type"),
        (segment("j", None), "wrong_type"),
        (segment("k", "NO SUBSET", []), "no_subset"),
        (segment("l", "ANOTHER SUBSET", ["{XXL}", 3]), "no_subset"),
        (segment("../m", "A PATH"), "bad_id"),
        ({"sid": "n", "begin_time": 0, "end_time": 1, "subsets": TRAIN}, "missing_key"),
        ("not an object", "wrong_type"),
    ]
    path = place / "GigaSpeech.json"
    whole = json.loads(path.read_text())["audios"]
    write_json(
        place,
        *whole,
        recording("YOU1", *(row for row, _ in faulty)),
        recording("YOU3", segment("o", "NO FILE")),
        recording("YOU4", segment("p", "A PATH"), path="audio/../../secret.opus"),
        {"aid": "YOU5"},
        "not an object",
        recording("YOU1", segment("q", "CAF\u00c9")),
    )
    path.write_bytes(path.read_bytes().replace("CAF\u00c9".encode(), b"CAF\xc9"))
    expected = [*(reason for _, reason in faulty), "missing_file", "bad_id", "missing_key", "missing_key", "not_utf8"]

    report = packed(read, place, tmp_path / "corpus", normalizer="none")

    assert [row["reason"] for row in report["dropped_rows"]] == expected
    assert (report["rows_in"], report["rows_kept"]) == (len(expected) + 3, 3)
    assert report["dropped_rows"][7]["id"] == "recording 3, segment 8"


def test_recordings_are_read_one_by_one(place):
    path = place / "GigaSpeech.json"
    path.write_text(path.read_text() + "x" * 300_000)
    rows = read(place)
    assert next(rows).id == "YOU1_S1"
    text = json.dumps({"audios": [recording("YOU1", segment(f"s{n}", "A")) for n in range(5000)]})
    path.write_text(text[: len(text) // 2])
    rows = read(place)
    assert next(rows).id == "s0"
    with pytest.raises(BlspError, match=r"GigaSpeech\.json: broken after 2\d\d\d recordings .* download it again"):
        list(rows)


@pytest.mark.parametrize("text", ["", "{}", '{"audios": []}', "[1, 2]"])
def test_a_file_without_recordings_is_refused(tmp_path, text):
    (tmp_path / "GigaSpeech.json").write_text(text)
    with pytest.raises(BlspError, match=r"GigaSpeech\.json: (no \"audios\"|broken after 0 recordings)"):
        list(read(tmp_path))


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(BlspError, match=r"gigaspeech: looked for GigaSpeech\.json .* it holds none; name the folder"):
        list(read(tmp_path))
