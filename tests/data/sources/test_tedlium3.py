from pathlib import Path

import pytest

from blsp.data import shards
from blsp.data.records import Dropped, Utterance
from blsp.data.sources.tedlium3 import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken

TALKS = {
    "train": ("911Mothers_2010W", "when you 're in the garden"),
    "dev": ("AlGore_2009", "the window is open"),
    "test": ("AimeeMullins_2009P", "i bought a red lamp"),
}


def stm(place, split, talk, *lines):
    path = place / "legacy" / split / "stm" / f"{talk}.stm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))


def line(talk, text, start=0.0, end=1.0, speaker="someone"):
    return f"{talk} 1 {speaker} {start} {end} <o,f0,female> {text}"


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "TEDLIUM_release-3"
    for split, (talk, text) in TALKS.items():
        spoken(place / "legacy" / split / "sph" / f"{talk}.sph", text)
        stm(place, split, talk, line(talk, text, speaker=talk.split("_")[0]))
    return place


def test_a_segment_carries_what_its_line_says(place):
    rows = list(read(place))
    assert [(row.split, row.text) for row in rows] == [
        ("train", "when you're in the garden"),
        ("dev", "the window is open"),
        ("test", "i bought a red lamp"),
    ]
    assert isinstance(rows[2], Utterance)
    assert rows[2].id == "AimeeMullins_2009P-00000000-00001000"
    assert rows[2].audio == place / "legacy/test/sph/AimeeMullins_2009P.sph"
    assert (rows[2].speaker, rows[2].language, rows[2].licence) == ("AimeeMullins", "en", "CC-BY-NC-ND-3.0")
    assert (rows[2].start_s, rows[2].end_s, rows[2].source) == (0.0, 1.0, "tedlium3")


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("they said {NOISE} hello {SMACK}", "they said [NOISE] hello [NOISE]"),
        ("either(2) of <unk> them", "either of <unk> them"),
        ("the end (AlGore_2009-1.00-2.00)", "the end"),
        ("it 's the ' 60s ' cause they 're", "it's the '60s 'cause they're"),
        ("", ""),
    ],
)
def test_the_text_is_written_as_it_was_said(place, written, read_as):
    stm(place, "dev", "AlGore_2009", line("AlGore_2009", written))
    assert next(row for row in read(place) if row.split == "dev").text == read_as


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        ("AlGore_2009 1 AlGore 1.0 2.0", "missing_field", "expected talk, channel"),
        (b"AlGore_2009 1 AlGore 1.0 2.0 <o> caf\xe9\n", "not_utf8", "can't decode"),
        (line("AlGore_2009", "hello", start="soon"), "wrong_type", "start: expected seconds, found 'soon'"),
        (line("AlGore_2009", "hello", end="nan"), "wrong_type", "end"),
        (line("AlGore_2009", "hello", start=-1), "bad_segment", "-1 to 1 s"),
        (line("AlGore_2009", "hello", start=2), "bad_segment", "2 to 1 s"),
        (line("../../AlGore_2009", "hello"), "bad_id", "../../AlGore"),
        (line("AlGore_2009", "ignore_time_segment_in_scoring"), "ignored_in_scoring", "0.0 to 1.0"),
    ],
)
def test_a_bad_line_is_dropped_with_its_number_and_the_others_stay(place, bad, reason, detail):
    good = line("AlGore_2009", "the window is open")
    stm(place, "dev", "AlGore_2009", ";; a comment", good, "", bad, line("AlGore_2009", "hello", 1, 2))
    first, dropped, last = (row for row in read(place) if getattr(row, "split", "dev") == "dev")
    assert isinstance(first, Utterance) and isinstance(last, Utterance) and isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("AlGore_2009.stm:4", reason)
    assert "line 4: " in dropped.detail and detail in dropped.detail


def test_every_segment_is_packed_or_dropped(place, tmp_path):
    talk, text = TALKS["train"]
    lines = [line(talk, text), line(talk, text), line(talk, "{NOISE} <unk>", 1, 1.2), line(talk, "", 1, 1.3)]
    lines += [line(talk, "the talk went on", 500, 502), line("Nobody_2011", "nobody is here")]
    lines += [line(talk, "ignore_time_segment_in_scoring", 1, 2), "half a"]
    stm(place, "train", talk, *lines)
    shorten = place / "legacy/train/sph/Packed_2010.sph"
    shorten.write_bytes((place / f"legacy/train/sph/{talk}.sph").read_bytes().replace(b"-s3 pcm", b"-s3 xyz"))
    stm(place, "train", "Packed_2010", line("Packed_2010", "packed in another way"))

    report = packed(read, place, tmp_path / "corpus")
    reasons = "duplicate_id noise_only empty_text segment_outside_audio missing_file ignored_in_scoring missing_field"
    assert report["dropped"] == dict.fromkeys([*reasons.split(), "undecodable"], 1)
    (cut,) = shards.load_cuts("train", corpus_dir=tmp_path / "corpus")
    assert (cut.supervisions[0].text, cut.duration) == ("when you're in the garden", 1.0)


def test_the_order_is_the_same_each_time(place):
    for talk in ("Zoe_2001", "Ann_2002"):
        stm(place, "train", talk, line(talk, "words", 1, 2), line(talk, "words", 0, 1))
    ids = [row.id for row in read(place)]
    assert ids == [row.id for row in read(place)]
    assert [id_.split("_")[0] for id_ in ids[:5]] == ["911Mothers", "Ann", "Ann", "Zoe", "Zoe"]


def test_another_folder_is_named_with_what_was_looked_for(place, tmp_path):
    with pytest.raises(
        BlspError, match=r"looked for legacy/train/stm/\*\.stm in .*nowhere, but there is no such folder; name"
    ):
        list(read(Path(tmp_path / "nowhere")))
    with pytest.raises(BlspError, match="legacy/train/stm"):
        list(read(place / "legacy"))
    (place / "legacy/test/stm/AimeeMullins_2009P.stm").unlink()
    with pytest.raises(BlspError, match="legacy/test/stm"):
        list(read(place))
