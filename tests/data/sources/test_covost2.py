import pytest

from blsp.data import shards
from blsp.data.records import Utterance
from blsp.data.sources.covost2 import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken


def write_table(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"path\tsentence\ttranslation\tclient_id\n")
    with path.open("ab") as stream:
        stream.writelines(row if isinstance(row, bytes) else row.encode() for row in lines)


def line(number, sentence, translation, client="ann"):
    return f"common_voice_en_{number}.mp3\t{sentence}\t{translation}\t{client}\n"


@pytest.fixture
def place(tmp_path):
    """The folder of Common Voice 4's English, with two languages' tables of get_covost_splits.py."""
    place = tmp_path / "en"
    write_table(place / "covost_v2.en_de.train.tsv", line(1, "The lamp is lit.", 'Die Lampe \\"brennt\\".'))
    write_table(place / "covost_v2.en_de.dev.tsv", line(2, "Close the door.", "Schließ die Tür.", "bob"))
    write_table(place / "covost_v2.en_de.test.tsv", line(3, "Open the window.", "Öffne das Fenster.", "cat"))
    write_table(place / "covost_v2.en_sv-SE.test.tsv", line(3, "Open the window.", "Öppna fönstret.", "cat"))
    (place / "covost_v2.en_de.tsv").write_text("path\ttranslation\tsplit\n")
    for number, sentence in enumerate(["the lamp is lit", "close the door", "open the window"], start=1):
        spoken(place / "clips" / f"common_voice_en_{number}.mp3", sentence, 48_000)
    return place


def test_every_pair_and_split_is_read(place):
    rows = list(read(place))
    assert [(row.id, row.split, row.translation) for row in rows] == [
        ("common_voice_en_2-de", "dev", "Schließ die Tür."),
        ("common_voice_en_3-de", "test", "Öffne das Fenster."),
        ("common_voice_en_1-de", "train", 'Die Lampe "brennt".'),
        ("common_voice_en_3-sv-SE", "test", "Öppna fönstret."),
    ]
    assert isinstance(rows[0], Utterance)
    assert (rows[0].text, rows[0].speaker, rows[0].language) == ("Close the door.", "bob", "en")
    assert (rows[0].audio, rows[0].licence) == (place / "clips" / "common_voice_en_2.mp3", "CC0-1.0")
    assert [row.id for row in read(place.parent)] == [row.id for row in rows]


def test_bad_rows_are_dropped_and_all_rows_accounted_for(place, tmp_path):
    write_table(
        place / "covost_v2.en_de.train.tsv",
        line(1, "The lamp is lit.", "Die Lampe brennt."),
        b"common_voice_en_4.mp3\tno translation\n",
        line(5, "Caf\xe9.", "Kaffee").encode("latin-1"),
        line(6, "", "Nichts."),
        line(7, "Nothing.", " "),
        line(8, "Nobody said this.", "Niemand sagte das."),
        line(1, "Twice.", "Zweimal."),
        line("/1", "A path.", "Ein Pfad."),
    )
    report = packed(read, place, tmp_path / "corpus")
    assert [(row["reason"], row["id"]) for row in report["dropped_rows"]] == [
        ("wrong_columns", "covost_v2.en_de.train.tsv:3"),
        ("not_utf8", "covost_v2.en_de.train.tsv:4"),
        ("empty_text", "common_voice_en_6-de"),
        ("empty_translation", "covost_v2.en_de.train.tsv:6"),
        ("missing_file", "common_voice_en_8-de"),
        ("duplicate_id", "common_voice_en_1-de"),
        ("bad_id", "covost_v2.en_de.train.tsv:9"),
    ]
    assert (report["rows_in"], report["rows_kept"]) == (11, 4)
    kept = {cut.id: cut for cut in shards.load_cuts("test", corpus_dir=tmp_path / "corpus")}
    assert kept["common_voice_en_3-sv-SE"].custom["translation"] == "Öppna fönstret."


def test_another_folder_or_table_is_refused(tmp_path):
    (tmp_path / "covost_v2.en_de.tsv").write_text("path\ttranslation\tsplit\n")
    with pytest.raises(BlspError, match=r"covost2: looked for .* it holds none; make them .* get_covost_splits\.py"):
        list(read(tmp_path))
    (tmp_path / "covost_v2.en_de.dev.tsv").write_text("path\tsentence\tclient_id\n")
    with pytest.raises(BlspError, match="no column translation"):
        list(read(tmp_path))
