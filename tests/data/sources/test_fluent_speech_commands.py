import pytest

from blsp.data import shards
from blsp.data.records import Dropped, Utterance
from blsp.data.sources.fluent_speech_commands import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken

HEADER = ",path,speakerId,transcription,action,object,location"
SENTENCES = {"train": "Turn on the lights in the kitchen", "valid": "Get me my shoes", "test": "Louder please"}


def row(speaker, recording, text, intent="activate,lights,kitchen"):
    return f"0,wavs/speakers/{speaker}/{recording}.wav,{speaker},{text},{intent}"


def write(place, name, *lines):
    path = place / "data" / f"{name}_data.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "fluent_speech_commands_dataset"
    for name, text in SENTENCES.items():
        spoken(place / "wavs" / "speakers" / f"S{name}" / "one.wav", text)
        write(place, name, HEADER, row(f"S{name}", "one", text))
    return place


def test_a_row_carries_what_the_table_says(place):
    rows = list(read(place))
    assert [(found.split, found.text) for found in rows] == [
        ("train", SENTENCES["train"]),
        ("dev", SENTENCES["valid"]),
        ("test", SENTENCES["test"]),
    ]
    assert isinstance(rows[0], Utterance)
    assert (rows[0].id, rows[0].speaker, rows[0].language) == ("Strain/one", "Strain", "en")
    assert rows[0].audio == place / "wavs/speakers/Strain/one.wav"
    assert (rows[0].intent, rows[0].source) == ("activate_lights_kitchen", "fluent_speech_commands")
    assert rows[0].licence == "Fluent Speech Commands Public License"


def test_cells_are_found_by_their_column_and_may_be_quoted(place):
    write(
        place,
        "valid",
        "speakerId,transcription,path,location,object,action",
        's,"Go, ""now""",wavs/speakers/s/1.wav,none,none,change language\r',
    )
    (found,) = (found for found in read(place) if found.split == "dev")
    assert (found.text, found.intent, found.id) == ('Go, "now"', "change language_none_none", "s/1")


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        ("0,wavs/speakers/s/1.wav,s,Hello", "not_csv", "4 cells for 7 columns"),
        (row("s", "1", "Hello, you"), "not_csv", "8 cells"),
        (row("s", "1", '"Hello'), "not_csv", "unexpected end"),
        (b"0,wavs/speakers/s/1.wav,s,caf\xe9,a,b,c", "not_utf8", "decode"),
        ("0,,s,Hello,a,b,c", "missing_key", "path"),
        ("0,wavs/speakers/s/1.wav,,Hello,a,b,c", "missing_key", "speakerId"),
        (row("s", "1", "Hello", "activate,,none"), "missing_key", "object"),
        ("0,../../1.wav,s,Hello,a,b,c", "bad_path", "'../../1.wav'"),
        ("0,/etc/1.wav,s,Hello,a,b,c", "bad_path", "'/etc/1.wav'"),
        ("0,wavs/1.wav,/s,Hello,a,b,c", "bad_id", "'/s/1'"),
    ],
)
def test_a_bad_line_is_dropped_with_its_number_and_the_others_stay(place, bad, reason, detail):
    write(place, "valid", HEADER, row("s", "1", "One"), bad, "", row("s", "2", "Two"))
    first, dropped, last = (found for found in read(place) if getattr(found, "split", "dev") == "dev")
    assert isinstance(first, Utterance) and isinstance(last, Utterance) and isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("valid_data.csv:3", reason)
    assert "line 3: " in dropped.detail and detail in dropped.detail


def test_every_row_is_packed_or_dropped(place, tmp_path):
    good = row("Strain", "one", SENTENCES["train"])
    (place / "wavs/speakers/Strain/broken.wav").write_bytes(b"RIFF but not really" * 20)
    lines = [good, good, row("Strain", "none", "Nobody"), row("Strain", "broken", "Hello"), row("Strain", "two", "")]
    write(place, "train", HEADER, *lines, "half,a", row("Strain", "three", SENTENCES["test"]))
    report = packed(read, place, tmp_path / "corpus")
    reasons = "duplicate_id missing_file undecodable empty_text not_csv sentence_in_other_split"
    assert report["dropped"] == dict.fromkeys(reasons.split(), 1)
    (cut,) = shards.load_cuts("train", corpus_dir=tmp_path / "corpus")
    assert (cut.id, cut.custom["intent"]) == ("Strain/one", "activate_lights_kitchen")


def test_alone_it_trains_nothing_and_beside_another_corpus_it_evaluates(place, tmp_path):
    """Its official splits have the same phrases."""
    for name in ("train", "valid", "test"):
        spoken(place / "wavs" / "speakers" / f"S{name}" / "phrase.wav", f"louder please {name}")
        write(place, name, HEADER, row(f"S{name}", "phrase", "Louder please"))
    with pytest.raises(BlspError, match=r"none is left for train\.\n.* a corpus of other sentences") as caught:
        packed(read, place, tmp_path / "corpus")
    assert "sentence_in_other_split: 2, first Strain/phrase: 'Louder please', train here, is also in test" in str(
        caught.value
    )
    spoken(tmp_path / "other.wav", "where is the ladder")
    other = {"id": "other", "audio": tmp_path / "other.wav", "text": "where is the ladder", "split": "train"}

    def both(place):
        yield from read(place)
        yield Utterance(**other, source="other")

    report = packed(both, place, tmp_path / "corpus")
    assert {split: figures["rows"] for split, figures in report["splits"].items()} == {"train": 1, "dev": 0, "test": 1}
    assert report["dropped"] == {"sentence_in_other_split": 2}


def test_a_table_without_a_column_stops_the_run(place):
    write(place, "valid", ",path,speakerId,transcript,action,object,location", row("s", "1", "Hello"))
    with pytest.raises(BlspError, match=r"valid_data\.csv: no column transcription, only .*transcript"):
        list(read(place))
    for header in (b"", b"\xff\xfe"):
        write(place, "valid", header)
        with pytest.raises(BlspError, match=r"valid_data\.csv"):
            list(read(place))


def test_another_folder_is_named_with_what_was_looked_for(place, tmp_path):
    with pytest.raises(BlspError, match=r"looked for data/train_data\.csv in .*, but it holds none; name the folder"):
        list(read(tmp_path))
    (place / "data/test_data.csv").unlink()
    with pytest.raises(BlspError, match=r"looked for data/test_data\.csv"):
        list(read(place))
