"""The miniature's corpus: German is spoken in its test split alone."""

from collections import Counter

from blsp.miniature.corpus import GERMAN, spoken_sentences, utterances
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, voices_of
from blsp.params import load_params
from tests.trained import PARAMS

COUNTS = {"train_utterances": 40, "dev_utterances": 5, "test_utterances": 8}
GERMAN_COUNTS = {"german_train_utterances": 30, "german_test_utterances": 6}
SETTINGS = load_params(PARAMS).miniature.model_copy(update=COUNTS | GERMAN_COUNTS)


def test_german_is_in_the_test_split_alone():
    rows = list(utterances(SETTINGS))
    assert Counter((row.split, row.language) for row in rows) == {
        ("train", "en"): 40,
        ("dev", "en"): 5,
        ("test", "en"): 8,
        ("test", "de"): 6,
    }
    assert len({row.id for row in rows}) == len(rows)


def test_a_german_row_is_an_english_test_request_in_german():
    rows = [row for row in utterances(SETTINGS) if row.split == "test"]
    english, german = rows[:6], rows[8:]
    for one, other in zip(english, german, strict=True):
        assert (other.translation, other.text, other.intent) == (one.text, one.translation.lower(), one.intent)
        assert (other.answer is None) == (one.answer is None)
    assert {row.speaker for row in german} <= set(voices_of("test"))
    sound = german[0].audio()
    assert sound.sampling_rate_hz == SAMPLING_RATE_HZ and len(sound.samples) > SAMPLING_RATE_HZ


def test_what_the_speech_model_learns_german_from_is_of_the_train_split():
    learned = spoken_sentences(SETTINGS, "train", GERMAN)
    tested = spoken_sentences(SETTINGS, "test", GERMAN)
    assert len(learned) == 30 and len(tested) == 6
    assert not {s.text_german for s, _ in learned} & {s.text_german for s, _ in tested}
    assert not {p.voice for _, p in learned} & {p.voice for _, p in tested}
    assert [s for s, _ in learned] == [s for s, _ in spoken_sentences(SETTINGS, "train")][:30]
    assert [p for _, p in learned] != [p for _, p in spoken_sentences(SETTINGS, "train")][:30]
