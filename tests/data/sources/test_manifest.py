import json
from pathlib import Path

import pytest

from blsp.data.records import Dropped, Utterance
from blsp.data.sources.manifest import near, read
from blsp.errors import BlspError


@pytest.fixture
def manifest(tmp_path):
    """Writes lines (bytes as they are, anything else as JSON) and reads them back."""

    def write_and_read(*lines):
        path = tmp_path / "mine.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
        return list(read(path))

    return write_and_read


def test_every_key_arrives(manifest, tmp_path):
    fields = {
        "id": "a/1",
        "text": "Turn on the light",
        "speaker": "ann",
        "language": "en",
        "split": "dev",
        "start_s": 1,
        "end_s": 2.5,
        "licence": "CC-BY-4.0",
        "translation": "Mach das Licht an",
        "intent": "light_on",
        "answer": "the light",
    }
    (row,) = manifest({"audio": "clips/1.wav", **fields})
    assert isinstance(row, Utterance)
    assert {key: getattr(row, key) for key in fields} == fields
    assert (row.audio, row.source) == (tmp_path / "clips" / "1.wav", "mine.jsonl")


def test_null_means_absent(manifest):
    (row,) = manifest({"audio": "1.wav", "text": "a", "speaker": None, "end_s": None, "intent": ""})
    assert (row.speaker, row.end_s, row.intent, row.split) == (None, None, None, None)


def test_numbers_name_rows_and_speakers_as_well(manifest):
    (row,) = manifest({"audio": "1.wav", "text": "a", "id": 7, "speaker": 1272})
    assert (row.id, row.speaker) == ("7", "1272")


def test_an_absent_id_follows_from_the_row_alone(manifest):
    rows = [
        {"audio": "clips/a b.wav", "text": "one"},
        {"audio": "clips/a b.wav", "text": "one", "start_s": 1.0},
        {"audio": "clips/a b.wav", "text": "one", "start_s": 1.0, "end_s": 2.0},
        {"audio": "other/a b.wav", "text": "one"},
    ]
    ids = [row.id for row in manifest(*rows)]
    assert len(set(ids)) == 4
    assert all(id_.startswith("a_b-") for id_ in ids)
    assert [row.id for row in manifest(*reversed(rows))] == ids[::-1]
    assert manifest({**rows[0], "text": "another"})[0].id == ids[0]


GOOD = {"audio": "1.wav", "text": "a"}


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"{not json", "not_json", "property name"),
        (b'{"audio": "1.wav", "text": "a"', "not_json", "line 2"),
        (b'{"audio": "1.wav", "text": "caf\xe9"}', "not_json", "utf-8"),
        (b'["1.wav", "a"]', "not_json", "(list)"),
        (b"[" * 100_000, "not_json", "recursion"),
        ({"text": "a"}, "missing_key", "audio"),
        ({"audio": "1.wav"}, "missing_key", "text"),
        ({"audio": None, "text": "a"}, "missing_key", "audio"),
        ({"audio": "", "text": "a"}, "missing_key", "audio"),
        ({"audio": "1\0.wav", "text": "a"}, "missing_key", "audio"),
        ({"audio": 5, "text": "a"}, "wrong_type", "audio: expected a string, found 5 (int)"),
        ({"audio": "1.wav", "text": ["a"]}, "wrong_type", "text"),
        ({**GOOD, "speaker": True}, "wrong_type", "speaker"),
        ({**GOOD, "start_s": "1.5"}, "wrong_type", "start_s: expected seconds, found '1.5' (str)"),
        ({**GOOD, "end_s": True}, "wrong_type", "end_s"),
        ({**GOOD, "end_s": 10**400}, "wrong_type", "end_s"),
        (b'{"audio": "1.wav", "text": "a", "end_s": ' + b"9" * 5000 + b"}", "not_json", "digits"),
        (b'{"audio": "1.wav", "text": "a", "end_s": NaN}', "wrong_type", "end_s"),
        (b'{"audio": "1.wav", "text": "a", "start_s": 1e999}', "wrong_type", "start_s"),
        (b'{"audio": "1.wav", "text": "half \\ud800"}', "wrong_type", "text"),
        ({**GOOD, "start_s": -1}, "bad_segment", "-1"),
        ({**GOOD, "start_s": 2, "end_s": 2}, "bad_segment", "2 to 2"),
        ({**GOOD, "end_s": 0}, "bad_segment", "0 to 0"),
        ({**GOOD, "id": "../1"}, "bad_id", "'../1'"),
        ({**GOOD, "id": "/1"}, "bad_id", "'/1'"),
        ({**GOOD, "id": "a//1"}, "bad_id", "'a//1'"),
        ({**GOOD, "id": "a\n1"}, "bad_id", "a\\n1"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason_and_the_others_stay(manifest, line, reason, detail):
    first, bad, last = manifest(GOOD, line, {**GOOD, "audio": "2.wav"})
    assert isinstance(first, Utterance) and isinstance(last, Utterance)
    assert isinstance(bad, Dropped)
    assert (bad.id, bad.reason) == ("mine.jsonl:2", reason)
    assert detail in bad.detail


OUTSIDE = ["/there/1.wav", "../1.wav", "a/../../1.wav", "s3://speech/1.wav", "."]


@pytest.mark.parametrize("audio", OUTSIDE)
def test_audio_outside_the_manifests_folder_is_dropped(manifest, audio):
    first, bad = manifest({**GOOD, "audio": "a/../b/../1.wav"}, {**GOOD, "audio": audio})
    assert isinstance(first, Utterance)
    assert (bad.id, bad.reason) == ("mine.jsonl:2", "bad_path")
    assert f"{audio!r} does not lie in" in bad.detail and "audio_root" in bad.detail


def test_audio_lies_where_the_root_says(manifest, tmp_path, monkeypatch):
    manifest(GOOD, {**GOOD, "audio": "/there/1.wav"}, {**GOOD, "audio": "../1.wav"})
    path = tmp_path / "mine.jsonl"
    assert [str(row.audio) for row in read(path, Path("/")) if isinstance(row, Utterance)] == [
        str(tmp_path / "1.wav"),
        "/there/1.wav",
        str(tmp_path.parent / "1.wav"),
    ]
    monkeypatch.chdir(tmp_path)
    there = [getattr(row, "reason", "kept") for row in read(Path("mine.jsonl"), Path("/there/"))]
    assert there == ["bad_path", "kept", "bad_path"]


def test_blank_lines_and_a_byte_order_mark_are_no_rows(manifest):
    rows = manifest(b'\xef\xbb\xbf{"audio": "1.wav", "text": "a"}', b"", b"  \r", GOOD, b"")
    assert [type(row) for row in rows] == [Utterance, Utterance]


def test_an_unknown_key_is_ignored_and_named(manifest):
    first, second = manifest(GOOD, {**GOOD, "speeker": "ann", "snr": 20, "nothing": None})
    assert (first.ignored, second.ignored, second.speaker) == ((), ("speeker", "snr"), None)
    assert near("speeker") == "speaker"


def test_a_row_without_text_says_what_it_has(manifest):
    (bad,) = manifest({"audio": "1.wav", "words": "a"})
    assert (bad.reason, bad.detail) == ("missing_key", "line 1: text is missing; the row has audio, words")


@pytest.mark.parametrize(
    ("word", "split"),
    [("validation", "dev"), ("valid", "dev"), ("VAL", "dev"), ("training", "train"), ("Test", "test"), ("", None)],
)
def test_splits_have_the_names_that_others_give_them(manifest, word, split):
    (row,) = manifest({**GOOD, "split": word})
    assert row.split == split


def test_an_unknown_split_stops_the_run_and_names_the_valid_ones(manifest):
    with pytest.raises(BlspError, match="line 1: unknown split 'other'; write one of train, dev, test"):
        manifest({**GOOD, "split": "other"})


def test_nemo_manifests_are_read(manifest, tmp_path):
    whole, part, bad = manifest(
        {"audio_filepath": "a.wav", "text": "one", "duration": 3.5, "lang": "en"},
        {"audio_filepath": "a.wav", "text": "two", "offset": 1.5, "duration": 2.0},
        {"audio_filepath": "a.wav", "text": "two", "duration": "long"},
    )
    assert (whole.audio, whole.start_s, whole.end_s) == (tmp_path / "a.wav", None, None)
    assert (whole.language, whole.ignored) == ("en", ())
    assert (part.start_s, part.end_s) == (1.5, 3.5)
    assert (bad.reason, bad.detail) == ("wrong_type", "line 3: duration: expected seconds, found 'long' (str)")


CSV = 'audio,text,speaker,end_s,split,note\n1.wav,"turn ""it"" on, now",007,2.5,validation,x\n2.wav,off,,,,\n'
TSV = 'path\tsentence\tclient\n1.wav\t"Hello" he said\ta\n2.wav\t"off, ""now"""\tb\n'


def test_csv_is_read_as_spreadsheets_write_it(tmp_path):
    for content in (CSV, "\ufeff" + CSV.replace("\n", "\r\n"), CSV.replace(",", ";").replace("on; now", "on, now")):
        (tmp_path / "m.csv").write_bytes(content.encode())
        first, second = read(tmp_path / "m.csv")
        assert (first.text, first.speaker, first.end_s, first.split) == ('turn "it" on, now', "007", 2.5, "dev")
        assert first.ignored == ("note",) and first.audio == tmp_path / "1.wav"
        assert (second.text, second.speaker, second.end_s, second.split) == ("off", None, None, None)


def test_in_tsv_a_quotation_mark_is_a_letter_unless_it_is_around_a_cell(tmp_path):
    (tmp_path / "m.tsv").write_text(TSV)
    assert [row.text for row in read(tmp_path / "m.tsv")] == ['"Hello" he said', 'off, "now"']


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"bad.wav", "wrong_columns", "1 cells for 3 columns"),
        (b"bad.wav,a,b,c", "wrong_columns", "4 cells"),
        (b"bad.wav,caf\xe9,1", "not_utf8", "UTF-8"),
        (b",a,1", "missing_key", "audio is missing; the row has text, end_s"),
        (b"bad.wav, ,1", "missing_key", "text is missing"),
        (b"bad.wav,a,soon", "wrong_type", "end_s: expected seconds, found 'soon'"),
        (b"bad.wav,a,nan", "wrong_type", "end_s"),
        (b'bad.wav,"a"b,1', "not_csv", "expected after"),
        (b"../bad.wav,a,1", "bad_path", "audio_root"),
    ],
)
def test_a_bad_row_of_a_table_is_dropped_and_the_others_stay(tmp_path, line, reason, detail):
    (tmp_path / "m.csv").write_bytes(b"\n".join([b"audio,text,end_s", b"1.wav,one,1", line, b"2.wav,two,2", b""]))
    first, bad, last = read(tmp_path / "m.csv")
    assert [first.text, last.text] == ["one", "two"]
    assert (bad.id, bad.reason) == ("m.csv:3", reason) and detail in bad.detail


def test_a_quotation_mark_that_is_never_closed_swallows_nothing_in_silence(tmp_path):
    (tmp_path / "m.csv").write_text('audio,text\n1.wav,one\n2.wav,"two\n3.wav,three\n')
    first, bad = read(tmp_path / "m.csv")
    assert (first.text, bad.reason, bad.id) == ("one", "not_csv", "m.csv:4") and "line" in bad.detail


@pytest.mark.parametrize("content", [b"", b"\n", b"1.wav,turn it on\n", b"audio;words\n1.wav;a\n"])
def test_a_table_without_header_is_one_message(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(BlspError, match=r"m\.csv: no column audio or text in the header, which names"):
        list(read(tmp_path / "m.csv"))


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(BlspError, match=r"nowhere\.jsonl: No such file"):
        list(read(tmp_path / "nowhere.jsonl"))
    with pytest.raises(BlspError, match="Is a directory"):
        list(read(tmp_path))
