import pytest

from blsp.data import shards
from blsp.data.records import Dropped, Utterance
from blsp.data.sources.mustc import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken

TEXTS = {
    "train": ("The garden is open.", "Der Garten ist offen."),
    "dev": ("I bought a red lamp.", "Ich habe eine rote Lampe gekauft."),
    "tst-COMMON": ("Close the window.", "Schließ das Fenster."),
    "tst-HE": ("Where is the ladder?", "Wo ist die Leiter?"),
}


def item(wav, offset=0.0, duration=1.0, speaker="spk.7"):
    return f"- {{duration: {duration}, offset: {offset}, rW: 9, uW: 0, speaker_id: {speaker}, wav: {wav}}}"


def write(place, name, yaml, english, german):
    folder = place / "data" / name / "txt"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, lines in (("yaml", yaml), ("en", english), ("de", german)):
        encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
        (folder / f"{name}.{suffix}").write_bytes(b"".join(line + b"\n" for line in encoded))


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "en-de"
    for number, (name, (english, german)) in enumerate(TEXTS.items()):
        wav = f"ted_{number}.wav"
        spoken(place / "data" / name / "wav" / wav, english)
        write(place, name, [item(wav, 0.1, 0.7, f"spk.{number}")], [english], [german])
    return place


def test_a_segment_carries_its_translation_and_what_the_yaml_says(place):
    rows = list(read(place))
    assert [(row.split, row.text, row.translation) for row in rows] == [
        (split, *TEXTS[name])
        for name, split in {"train": "train", "dev": "dev", "tst-COMMON": "test", "tst-HE": "test"}.items()
    ]
    assert isinstance(rows[0], Utterance)
    assert (rows[0].id, rows[0].speaker, rows[0].language) == ("en-de/ted_0-00000100-00000800", "spk.0", "en")
    assert rows[0].audio == place / "data/train/wav/ted_0.wav"
    assert (rows[0].start_s, rows[0].end_s) == (0.1, 0.8)
    assert (rows[0].licence, rows[0].source) == ("CC-BY-NC-ND-4.0", "mustc en-de")


def test_the_release_without_tst_he_is_whole(place):
    for path in (place / "data/tst-HE").rglob("*.*"):
        path.unlink()
    (place / "data/tst-HE/txt").rmdir()
    (place / "data/tst-HE/wav").rmdir()
    (place / "data/tst-HE").rmdir()
    assert [row.split for row in read(place)] == ["train", "dev", "test"]


def test_items_over_several_lines_comments_and_breaks_within_a_sentence(place):
    wrapped = item("ted_1.wav").replace(" speaker_id", "\n  speaker_id")
    block = "- duration: 1\n  offset: 2.5\n  speaker_id: spk.1\n  wav: ted_1.wav"
    separator = "two\u2028halves\x85of one\rline"  # lines end at \n alone
    write(place, "dev", ["# by hand", "---", wrapped, "", block], [separator, "b"], ["", "B"])
    first, second = (row for row in read(place) if row.split == "dev")
    assert (first.text, first.translation) == (separator, None)
    assert (second.text, second.translation, second.start_s, second.end_s) == ("b", "B", 2.5, 3.5)


@pytest.mark.parametrize(
    ("bad", "english", "german", "reason", "detail"),
    [
        ("garbage", "b", "B", "not_yaml", "expected one item of a list"),
        ("- {duration: 1, offset: 2", "b", "B", "not_yaml", "expected"),
        ("- [1, 2]", "b", "B", "not_yaml", "expected an object"),
        ("- !!python/object/apply:os.system ['true']", "b", "B", "not_yaml", "could not determine a constructor"),
        ("- {duration: 1, offset: 2, speaker_id: spk.1}", "b", "B", "missing_key", "wav"),
        ("- {offset: 2, speaker_id: spk.1, wav: ted_1.wav}", "b", "B", "missing_key", "duration"),
        (item("ted_1.wav", "soon"), "b", "B", "wrong_type", "offset: expected seconds, found 'soon'"),
        (item("ted_1.wav", ".inf"), "b", "B", "wrong_type", "offset"),
        (item("ted_1.wav", -2), "b", "B", "bad_segment", "-2 to -1 s"),
        (item("ted_1.wav", 2, 0), "b", "B", "bad_segment", "2 to 2 s"),
        (item("../ted_1.wav"), "b", "B", "bad_path", "'../ted_1.wav'"),
        (item("/etc/passwd"), "b", "B", "bad_path", "'/etc/passwd'"),
        (item("ted_1.wav"), b"caf\xe9", "B", "not_utf8", "decode"),
        (item("ted_1.wav"), "b", b"\xfc", "not_utf8", "decode"),
        (item("ted_\xe9.wav").encode("latin-1"), "b", "B", "not_utf8", "decode"),
    ],
)
def test_a_bad_item_is_dropped_with_its_line_and_the_others_keep_their_texts(
    place, bad, english, german, reason, detail
):
    write(place, "dev", [item("ted_1.wav", 1), bad, item("ted_1.wav", 5)], ["a", english, "c"], ["A", german, "C"])
    first, dropped, last = (row for row in read(place) if getattr(row, "split", "dev") == "dev")
    assert isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("dev.yaml:2", reason)
    assert "line 2: " in dropped.detail and detail in dropped.detail
    assert [(row.text, row.translation, row.start_s) for row in (first, last)] == [("a", "A", 1), ("c", "C", 5)]


def test_every_segment_is_packed_or_dropped(place, tmp_path):
    good, (english, german) = item("ted_0.wav", 0.1, 0.7), TEXTS["train"]
    yaml = [good, good, item("ted_0.wav", 0.2, 0.5), item("ted_0.wav", 400, 1), item("ted_99.wav"), "- {half"]
    yaml += [item("ted_0.wav", 0.3, 0.5)]
    write(place, "train", yaml, [english, english, "(Applause)", "Beyond it", "Nobody", "f", ""], [german] * 7)
    report = packed(read, place, tmp_path / "corpus")
    reasons = "duplicate_id noise_only segment_outside_audio missing_file not_yaml empty_text"
    assert report["dropped"] == dict.fromkeys(reasons.split(), 1)
    (cut,) = shards.load_cuts("train", corpus_dir=tmp_path / "corpus")
    assert (cut.custom["translation"], cut.duration, cut.supervisions[0].speaker) == (german, 0.7, "spk.7")


@pytest.mark.parametrize(
    ("english", "german"), [(["a"], ["A", "B"]), (["a", "b"], ["A"]), (["a", "b", "c"], ["A", "B"])]
)
def test_files_of_other_lengths_stop_the_run(place, english, german):
    write(place, "dev", [item("ted_1.wav"), item("ted_1.wav", 1)], english, german)
    with pytest.raises(BlspError, match=r"dev\.yaml, dev\.en and dev\.de differ in length"):
        list(read(place))


def test_another_folder_is_named_with_what_was_looked_for(place, tmp_path):
    for other in (tmp_path, tmp_path / "en-fr", place / "data"):
        with pytest.raises(BlspError, match="mustc: looked for a language pair, en-de/data or the like, in"):
            list(read(other))
    (place / "data/dev/txt/dev.de").unlink()
    with pytest.raises(BlspError, match=r"dev\.de: No such file"):
        list(read(place))
