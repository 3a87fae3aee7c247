from pathlib import Path

import pytest

from blsp.data.records import Utterance
from blsp.data.sources.librispeech import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken

LINES = {
    "train-clean-100/19/198/19-198": ["NORTHANGER ABBEY WAS READ ALOUD", "THIS LITTLE WORK WAS FINISHED"],
    "train-other-500/20/205/20-205": ["THE WIND WAS COLD THAT DAY"],
    "dev-clean/84/121123/84-121123": ["GO DO YOU HEAR"],
    "dev-other/116/288045/116-288045": ["AS I APPROACHED THE CITY"],
    "test-clean/61/70968/61-70968": ["HE BEGAN A CONFUSED COMPLAINT", "GIVE NOT SO EARNEST A MIND"],
    "test-other/367/130732/367-130732": ["LOBSTERS AND LOBSTERS"],
}


@pytest.fixture
def place(tmp_path):
    """LibriSpeech as its archives unpack, a chapter a subset."""
    place = tmp_path / "LibriSpeech"
    for chapter, sentences in LINES.items():
        for number, sentence in enumerate(sentences):
            spoken(place / f"{chapter}-{number:04}.flac", sentence.lower())
        transcripts = [f"{Path(chapter).name}-{number:04} {text}\n" for number, text in enumerate(sentences)]
        (place / f"{chapter}.trans.txt").write_text("".join(transcripts))
    (place / "SPEAKERS.TXT").write_text("; not read\n")
    return place


def test_every_subset_is_read_into_its_split(place):
    rows = list(read(place))
    assert [(row.id, row.split) for row in rows] == [
        ("84-121123-0000", "dev"),
        ("116-288045-0000", "dev"),
        ("61-70968-0000", "test"),
        ("61-70968-0001", "test"),
        ("367-130732-0000", "test"),
        ("19-198-0000", "train"),
        ("19-198-0001", "train"),
        ("20-205-0000", "train"),
    ]
    assert rows[0].audio == place / "dev-clean/84/121123/84-121123-0000.flac"
    assert (rows[0].text, rows[0].speaker, rows[0].language) == ("GO DO YOU HEAR", "librispeech-84", "en")
    assert (rows[0].licence, rows[0].source) == ("CC-BY-4.0", "librispeech")
    assert [row.id for row in read(place)] == [row.id for row in rows]


def test_bad_lines_are_dropped_and_all_rows_accounted_for(place, tmp_path):
    transcripts = place / "train-clean-100/19/198/19-198.trans.txt"
    with transcripts.open("ab") as stream:
        stream.write(b"19-198-0002 CAF\xc9 WITHOUT UTF EIGHT\n")
        stream.write(b"\n")
        stream.write(b"84-121123-0000 OF ANOTHER CHAPTER\n")
        stream.write(b"19-198-../../secret A PATH\n")
        stream.write(b"19-198-0003\n")
        stream.write(b"19-198-0004 NOBODY SAID THIS\n")
        stream.write(b"19-198-0000 SAID TWICE\n")
    (place / "dev-clean/84/999").mkdir()
    report = packed(read, place, tmp_path / "corpus")
    assert [(row["reason"], row["id"]) for row in report["dropped_rows"]] == [
        ("missing_transcripts", "dev-clean/84/999/84-999.trans.txt"),
        ("not_utf8", "train-clean-100/19/198/19-198.trans.txt:3"),
        ("bad_id", "train-clean-100/19/198/19-198.trans.txt:5"),
        ("bad_id", "train-clean-100/19/198/19-198.trans.txt:6"),
        ("empty_text", "19-198-0003"),
        ("missing_file", "19-198-0004"),
        ("duplicate_id", "19-198-0000"),
    ]
    assert (report["rows_in"], report["rows_kept"]) == (15, 8)
    assert {split: figures["rows"] for split, figures in report["splits"].items()} == {"train": 3, "dev": 2, "test": 3}


def test_one_subset_and_mini_librispeech_are_enough(tmp_path):
    chapter = tmp_path / "train-clean-5/19/198"
    chapter.mkdir(parents=True)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 ONE\r\n")
    (row,) = read(tmp_path)
    assert isinstance(row, Utterance)
    assert (row.split, row.text) == ("train", "ONE")


def test_another_folder_is_refused(place, tmp_path):
    with pytest.raises(
        BlspError, match=r"librispeech: looked for subsets .* it holds none; name the folder LibriSpeech"
    ):
        list(read(tmp_path))
    with pytest.raises(BlspError, match="nowhere, but there is no such folder"):
        list(read(tmp_path / "nowhere"))
