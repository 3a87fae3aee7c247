import pytest

from blsp.data.records import Utterance
from blsp.data.sources.common_voice import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken

# As in releases since 17.0; `accents` is there twice in some.
COLUMNS = [
    "client_id",
    "path",
    "sentence_id",
    "sentence",
    "sentence_domain",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
    "variant",
    "locale",
    "segment",
]


def line(number, sentence, client="ann", locale="en", **fields):
    values = {"client_id": client, "path": f"common_voice_{locale}_{number}.mp3", "sentence": sentence}
    values |= {"locale": locale, **fields}
    return "\t".join(values.get(column, "") for column in COLUMNS) + "\n"


def write_table(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\t".join(COLUMNS).encode() + b"\n")
    with path.open("ab") as stream:
        stream.writelines(row if isinstance(row, bytes) else row.encode() for row in lines)


@pytest.fixture
def place(tmp_path):
    """One language of a release, as it unpacks."""
    place = tmp_path / "cv-corpus-17.0-2024-03-15" / "en"
    write_table(place / "train.tsv", line(1, "The lamp is on the table.", "ann"), line(2, "Close the door.", "bob"))
    write_table(place / "dev.tsv", line(3, 'He said \\"hello\\" to me.', "cat"))
    write_table(place / "test.tsv", line(4, "Open the kitchen window.", "dan"))
    write_table(place / "validated.tsv", line(1, "The lamp is on the table."), line(5, "Not read."))
    for number, sentence in enumerate(
        ["the lamp is on the table", "close the door", "he said hello to me", "open the kitchen window"], start=1
    ):
        spoken(place / "clips" / f"common_voice_en_{number}.mp3", sentence, 32_000)
    return place


def test_every_split_is_read(place):
    rows = list(read(place))
    assert [(row.id, row.split, row.speaker) for row in rows] == [
        ("common_voice_en_1", "train", "ann"),
        ("common_voice_en_2", "train", "bob"),
        ("common_voice_en_3", "dev", "cat"),
        ("common_voice_en_4", "test", "dan"),
    ]
    assert isinstance(rows[2], Utterance)
    assert rows[2].text == 'He said "hello" to me.'
    assert rows[2].audio == place / "clips" / "common_voice_en_3.mp3"
    assert (rows[2].language, rows[2].licence, rows[2].source) == ("en", "CC0-1.0", "common_voice")


def test_bad_rows_are_dropped_and_all_rows_accounted_for(place, tmp_path):
    write_table(
        place / "train.tsv",
        line(1, "The lamp is on the table."),
        b"ann\tcommon_voice_en_6.mp3\tshort\n",
        line(7, "Caf\xe9.").encode("latin-1"),
        line(8, ""),
        line(9, "Nobody said this."),
        line(1, "The same clip again."),
        line(10, "A path.", path="../../../secret.mp3"),
        line(11, "Two lines\r in one."),
        line(12, "No clip.", path=""),
        line(2, "Open the kitchen window."),
        "\n",
    )
    report = packed(read, place, tmp_path / "corpus")
    assert [(row["reason"], row["id"]) for row in report["dropped_rows"]] == [
        ("wrong_columns", "en/train.tsv:3"),
        ("not_utf8", "en/train.tsv:4"),
        ("empty_text", "common_voice_en_8"),
        ("missing_file", "common_voice_en_9"),
        ("duplicate_id", "common_voice_en_1"),
        ("bad_id", "en/train.tsv:8"),
        ("not_tsv", "en/train.tsv:9"),
        ("bad_id", "en/train.tsv:10"),
        ("sentence_in_other_split", "common_voice_en_2"),
    ]
    assert (report["rows_in"], report["rows_kept"]) == (12, 3)


def test_a_release_is_read_language_by_language(place):
    write_table(place.parent / "cy" / "test.tsv", line(1, "Bore da.", locale="cy"))
    rows = list(read(place.parent))
    assert [(row.id, row.language) for row in rows[:2]] == [("common_voice_cy_1", "cy"), ("common_voice_en_1", "en")]
    assert len(rows) == 5


def test_early_releases_have_neither_locale_nor_suffix(tmp_path):
    (tmp_path / "de").mkdir()
    (tmp_path / "de" / "test.tsv").write_text("client_id\tpath\tsentence\nann\t0a1b\tGuten Tag\n")
    (row,) = read(tmp_path / "de")
    assert (row.id, row.language, row.audio) == ("0a1b", "de", tmp_path / "de" / "clips" / "0a1b.mp3")


def test_another_folder_or_table_is_refused(tmp_path):
    with pytest.raises(
        BlspError, match=r"common_voice: looked for train.tsv.* it holds none; name a language's folder"
    ):
        list(read(tmp_path))
    (tmp_path / "dev.tsv").write_text("client_id\tpath\ttext\n")
    with pytest.raises(BlspError, match=r"dev\.tsv: no column sentence; the header names client_id, path, text"):
        list(read(tmp_path))
    (tmp_path / "dev.tsv").write_text("")
    with pytest.raises(BlspError, match="the header names none"):
        list(read(tmp_path))
