from pathlib import Path

import pytest

from blsp.data.records import Dropped, Utterance
from blsp.data.splits import HeldOutSentences, assign_speakers
from blsp.data.text import sentence_keys


def row(number, speaker=None, split=None):
    return Utterance(id=f"row{number}", audio=Path("a.wav"), text="a", speaker=speaker, split=split, source="test")


def test_speakers_stay_whole_and_shares_are_met():
    rows = [row(n, speaker=f"speaker{n % 1000}") for n in range(3000)]
    speakers = assign_speakers(rows, dev_share=0.1, test_share=0.2)
    of_speaker = {}
    for utterance in rows:
        of_speaker.setdefault(utterance.speaker, set()).add(speakers.of(utterance))
    assert all(len(found) == 1 for found in of_speaker.values())
    found = [split for (split,) in of_speaker.values()]
    assert found.count("test") == pytest.approx(200, abs=50)
    assert found.count("dev") == pytest.approx(100, abs=40)


def test_rows_added_later_move_nobody():
    rows = [row(n, speaker=f"speaker{n}") for n in range(300)]
    before = assign_speakers(rows[:200], 0.1, 0.1)
    after = assign_speakers(rows[::-1], 0.1, 0.1)
    assert [before.of(utterance) for utterance in rows] == [after.of(utterance) for utterance in rows]


@pytest.mark.parametrize("count", range(3, 12))
def test_even_few_speakers_fill_every_split(count):
    rows = [row(n, speaker=f"{count} {n}") for n in range(count)]
    speakers = assign_speakers(rows, 0.05, 0.05)
    found = [speakers.of(utterance) for utterance in rows]
    assert {"test", "dev"} <= set(found)
    assert found.count("train") >= 1


def test_a_share_of_zero_holds_nobody_out():
    rows = [row(n, speaker=f"speaker{n}") for n in range(5)]
    speakers = assign_speakers(rows, 0.0, 0.0)
    assert {speakers.of(utterance) for utterance in rows} == {"train"}


def test_rows_without_speaker_are_spread_by_id():
    rows = [row(n) for n in range(1000)]
    speakers = assign_speakers(rows, 0.1, 0.1)
    found = [speakers.of(utterance) for utterance in rows]
    assert found.count("test") == pytest.approx(100, abs=40)
    assert found.count("dev") == pytest.approx(100, abs=40)


def test_what_a_row_names_is_kept_and_its_speaker_follows():
    rows = [
        row(0, "ann", "test"),
        row(1, "ann"),
        row(2, "bob", "train"),
        row(3, "bob", "dev"),
        row(4, "bob"),
        Dropped("row5", "not_json", ""),
        *(row(n, f"speaker{n}") for n in range(6, 20)),
    ]
    speakers = assign_speakers(rows, 0.05, 0.05)
    assert [speakers.of(utterance) for utterance in rows[:5]] == ["test", "test", "train", "dev", "dev"]
    assert {speakers.of(utterance) for utterance in rows[6:]} == {"train", "dev", "test"}


def test_sentences_of_test_are_kept_from_dev_and_train_and_those_of_dev_from_train():
    held_out = HeldOutSentences()
    for text, split in (("one", "test"), ("two", "dev"), ("three", "train")):
        held_out.add(sentence_keys(text, "en", "whisper"), split)
    found = {
        (text, split): held_out.elsewhere(sentence_keys(text, "en", "whisper"), split)
        for text in ("one", "two", "three")
        for split in ("train", "dev", "test")
    }
    assert {key: value for key, value in found.items() if value} == {
        ("one", "train"): "test",
        ("one", "dev"): "test",
        ("two", "train"): "dev",
    }
    assert held_out.elsewhere(sentence_keys("ONE!", "en", "whisper"), "train") == "test"
