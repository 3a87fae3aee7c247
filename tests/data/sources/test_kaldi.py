from pathlib import Path

import pytest
from lhotse.kaldi import load_kaldi_data_dir

from blsp.data import shards
from blsp.data.records import Dropped, Utterance
from blsp.data.sources import rows
from blsp.data.sources.kaldi import read
from blsp.errors import BlspError
from blsp.params import Source
from tests.data.sources.trees import packed, spoken

SENTENCES = {"train_small": "WHERE IS THE LADDER", "dev": "OPEN THE WINDOW", "eval2000": "CALL MY BROTHER"}


def write(place, **tables):
    """The tables of a data folder: lines, bytes as they are; `wav_scp` is wav.scp."""
    place.mkdir(parents=True, exist_ok=True)
    for name, lines in tables.items():
        content = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        (place / name.replace("_scp", ".scp")).write_bytes(content)


@pytest.fixture
def place(tmp_path):
    """Three data folders of one utterance each, in words of speechocean762: paths start above the folders."""
    place = tmp_path / "corpus762"
    for name, text in SENTENCES.items():
        spoken(place / name / "audio" / "1.opus", text)
        scp = [f"{name}-1 {name}/audio/1.opus"]
        write(place / name, wav_scp=scp, text=[f"{name}-1 {text}"], utt2spk=[f"{name}-1 S{name}"])
    return place


def test_each_folder_is_a_split_and_paths_start_where_the_files_are(place):
    found = list(read(place))
    assert [(row.split, row.text, row.speaker) for row in found] == [
        ("dev", SENTENCES["dev"], "Sdev"),
        ("test", SENTENCES["eval2000"], "Seval2000"),
        ("train", SENTENCES["train_small"], "Strain_small"),
    ]
    assert found[0].audio == place / "dev/audio/1.opus" and found[0].source == "corpus762"
    (alone,) = read(place / "dev")
    assert (alone.audio, alone.source) == (found[0].audio, "dev")
    write(place / "dev", wav_scp=["dev-1 audio/1.opus"])
    assert next(read(place)).audio == found[0].audio


def test_segments_are_utterances_of_longer_recordings_as_lhotse_has_them(place):
    folder = place / "dev"
    write(
        folder,
        wav_scp=["talk /there/talk.wav"],
        segments=["a talk 0.5 2.25", "b talk 3 -1"],
        text=["a ONE  TWO", "b THREE"],
        utt2spk=["a ann", "b bob"],
        utt2lang=["a en_us", "b German"],
        reco2dur=["talk 9.5"],
    )
    found = list(read(folder, Path("/there")))
    assert [(row.id, row.start_s, row.end_s, row.text) for row in found] == [
        ("a", 0.5, 2.25, "ONE  TWO"),
        ("b", 3.0, None, "THREE"),
    ]
    assert {row.audio for row in found} == {Path("/there/talk.wav")}
    source = Source(name="kaldi", path=str(folder), audio_root="/there", licence="CC0-1.0", language="fr")
    assert [(row.language, row.licence) for row in rows(source, None)] == [("en-US", "CC0-1.0"), ("de", "CC0-1.0")]
    _, segments, _ = load_kaldi_data_dir(folder, 16_000)
    theirs = [(s.id, s.start, s.end, s.text.split(), s.speaker) for s in segments]
    assert theirs == [(row.id, row.start_s, row.end_s or 9.5, row.text.split(), row.speaker) for row in found]


GOOD = {"wav_scp": "good audio/1.opus", "text": "good OPEN THE WINDOW", "utt2spk": "good ann"}


@pytest.mark.parametrize(
    ("lines", "id_", "reason", "detail"),
    [
        ({"wav_scp": "bad touch hacked; cat audio/1.opus |"}, "bad", "command", "not run: 'touch hacked; cat"),
        ({"wav_scp": "bad |touch hacked"}, "bad", "command", "'bad' (str)"),
        ({"wav_scp": "bad wav.ark:1024"}, "bad", "unsupported_audio", "'wav.ark:1024'"),
        ({"wav_scp": "bad -"}, "bad", "unsupported_audio", "'-'"),
        ({"wav_scp": "bad"}, "bad", "wrong_columns", "wav.scp says nothing of 'bad'"),
        ({"wav_scp": "bad /etc/passwd"}, "bad", "bad_path", "audio_root"),
        ({"wav_scp": "bad ../../1.opus"}, "bad", "bad_path", "'../../1.opus'"),
        ({"wav_scp": "bad s3://bucket/1.wav"}, "bad", "bad_path", "s3://"),
        ({"wav_scp": "bad 1\0.wav"}, "bad", "bad_path", "names no file"),
        ({"wav_scp": b"bad caf\xe9.wav"}, "bad", "not_utf8", "wav.scp:2"),
        ({"wav_scp": None}, "bad", "no_recording", "'bad' (str) is not in wav.scp"),
        ({"text": None}, "bad", "no_transcript", "'bad' (str) is not in text"),
        ({"text": None, "wav_scp": None}, "bad", "no_transcript", "not in text"),
        ({"text": b"bad caf\xe9"}, "bad", "not_utf8", "text:2"),
        ({"utt2spk": "bad"}, "bad", "wrong_columns", "utt2spk"),
        ({"text": "../bad A B", "wav_scp": "../bad 1.opus"}, "../bad", "bad_id", "'../bad'"),
        ({"text": "good AGAIN", "wav_scp": None, "utt2spk": None}, "text:2", "duplicate_id", "text:2"),
        ({"text": b"b\xe9d NOT A NAME"}, "b\ufffdd", "not_utf8", "text:2"),
    ],
)
def test_a_bad_line_is_dropped_with_its_reason_and_the_others_stay(place, monkeypatch, lines, id_, reason, detail):
    monkeypatch.chdir(place)
    bad = {"wav_scp": "bad audio/1.opus", "text": "bad NEVER MIND", "utt2spk": "bad ann"} | lines
    write(place / "dev", **{name: [GOOD[name], *([bad[name]] if bad[name] else [])] for name in GOOD})
    found = list(read(place / "dev"))
    assert [row.id for row in found if isinstance(row, Utterance)] == ["good"]
    dropped = {row.id: row for row in found if isinstance(row, Dropped)}
    assert dropped[f"dev/{id_}"].reason == reason
    assert detail in dropped[f"dev/{id_}"].detail
    assert not list(place.rglob("hacked"))


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("bad talk 2", "wrong_columns", "expected recording, start and end"),
        ("bad talk one 2", "wrong_type", "start: expected seconds"),
        ("bad talk 2 1", "bad_segment", "2 to 1 s"),
        ("bad talk nan 1", "wrong_type", "start"),
        ("bad nowhere 0 1", "no_recording", "'nowhere' (str) is not in wav.scp"),
        ("other talk 0 1", "no_recording", "'bad' (str) is not in segments"),
    ],
)
def test_bad_segments(place, line, reason, detail):
    write(place / "dev", wav_scp=["talk audio/1.opus"], segments=["good talk 0 1", line], text=["good A", "bad B"])
    good, bad, *_ = read(place / "dev")
    assert isinstance(good, Utterance) and good.speaker is None
    assert (bad.id, bad.reason) == ("dev/bad", reason) and detail in bad.detail


def test_every_row_is_packed_or_dropped(place, tmp_path):
    (place / "train_small/audio/broken.opus").write_bytes(b"OggS but not really" * 20)
    write(
        place / "train_small",
        wav_scp=["train_small-1 train_small/audio/1.opus", "b train_small/audio/broken.opus", "m train_small/none.wav"],
        text=["train_small-1 WHERE IS THE LADDER", "b BROKEN", "m MISSING", "e", "alone NOBODY SAID IT"],
    )
    report = packed(read, place, tmp_path / "out")
    assert report["dropped"] == {"undecodable": 1, "missing_file": 1, "no_recording": 2}
    (cut,) = shards.load_cuts("train", corpus_dir=tmp_path / "out")
    assert (cut.id, cut.supervisions[0].speaker) == ("train_small-1", "Strain_small")


def test_the_official_test_split_alone_is_kept(place):
    source = Source(name="kaldi", path=str(place), splits="official_test")
    assert {row.id: row.split for row in rows(source, None)} == {
        "dev-1": None,
        "eval2000-1": "test",
        "train_small-1": None,
    }


def test_another_folder_is_named_with_what_was_looked_for(place, tmp_path):
    with pytest.raises(
        BlspError, match=r"kaldi: looked for wav\.scp, here and in its folders in .*, but it holds none"
    ):
        list(read(place / "dev" / "audio"))
    with pytest.raises(BlspError, match="there is no such folder"):
        list(read(tmp_path / "nowhere"))
    (place / "dev/text").unlink()
    with pytest.raises(BlspError, match=r"looked for text in .*dev, but it holds none; transcripts are needed"):
        list(read(place))
