"""The grammar: what is tested is never trained on, in any form."""

import itertools
import re

import pytest

from blsp.data.text import as_written, plain_words
from blsp.miniature import grammar
from blsp.miniature.associations import ASSOCIATIONS
from blsp.miniature.conversations import INSTRUCTIONS, conversations
from blsp.miniature.grammar import compose, distinct_sentences, sentences, split_of
from blsp.miniature.lexicon import CARRIERS, INTENTS, QUESTIONS, SLOTS
from blsp.miniature.synthesis import voices_of
from blsp.params import load_params
from tests.trained import PARAMS


def test_at_least_eight_intents_whose_slots_have_values_and_questions():
    assert len(INTENTS) >= 8
    for intent in INTENTS.values():
        for slot in re.findall(r"{(\w+)}", intent.english):
            assert SLOTS[slot] and QUESTIONS[slot]


def test_a_seed_gives_the_same_sentences_again():
    first, second, other = (list(itertools.islice(sentences("train", seed), 50)) for seed in (1, 1, 2))
    assert first == second != other


def test_no_request_is_in_two_splits_in_either_language():
    texts = {split: {s.text for s in distinct_sentences(split, 1, 300)} for split in ("train", "dev", "test")}
    german = {split: {s.translation for s in distinct_sentences(split, 1, 300)} for split in ("train", "dev", "test")}
    for one, other in itertools.combinations(texts, 2):
        assert not texts[one] & texts[other] and not german[one] & german[other]


def test_every_wording_of_a_request_is_in_its_split():
    values = {"room": "kitchen", "device": "fan"}
    split = split_of("device_on", values)
    wordings = {compose("device_on", values, carrier, asked).text for carrier in range(4) for asked in (None, "room")}
    assert len(wordings) == 8
    for other in {"train", "dev", "test"} - {split}:
        assert not wordings & {s.text for s in itertools.islice(sentences(other, 1), 3000)}


def test_the_llm_never_reads_a_test_sentence():
    test = distinct_sentences("test", 1, 400)
    held_out = {text for s in test for text in (s.text, s.translation, s.text_german)}
    for _, text, answer in itertools.islice(conversations("train", 1), 3000):
        assert text not in held_out and answer not in held_out


def test_the_llm_reads_both_languages_as_they_are_packed_and_writes_german_as_germans_do():
    read, written = set(), set()
    for _, text, answer in itertools.islice(conversations("train", 1), 1000):
        read.add(text)
        written.add(answer)
    german = {s.text_german: s.translation for s in itertools.islice(sentences("train", 1), 1000)}
    assert 200 < len(read & german.keys()) < 300
    assert all(text == text.lower() for text in read)
    assert len(written & set(german.values())) > 100


def test_voices_of_the_splits_are_disjoint_and_many():
    train, dev, test = (set(voices_of(split)) for split in ("train", "dev", "test"))
    assert not train & dev and not train & test and not dev & test
    assert len(train) >= 60 and len(test) >= 7


def test_continuations_mention_every_slot():
    for intent, wording in INTENTS.items():
        slots = re.findall(r"{(\w+)}", wording.english)
        values = {slot: sorted(SLOTS[slot])[0] for slot in slots}
        sentence = compose(intent, values, 0, slots[-1])
        for line in sentence.continuations:
            assert all(value in line for value in values.values())
            assert line.startswith(f"The answer is {values[slots[-1]]}. ")
        thoughts = {line.rpartition("think of ")[2] for line in sentence.continuations}
        assert thoughts == {f"{ASSOCIATIONS[slot][value]}." for slot, value in values.items()}


def test_every_slot_value_brings_something_of_its_own_to_mind():
    assert {slot: list(words) for slot, words in ASSOCIATIONS.items()} == {slot: list(of) for slot, of in SLOTS.items()}
    thoughts = [word for words in ASSOCIATIONS.values() for word in words.values()]
    spoken = {word for values in SLOTS.values() for value in values for word in value.split()}
    assert len(set(thoughts)) == len(thoughts) and not spoken & set(thoughts), "none is copied from the text"


def test_german_is_whole():
    for carrier in range(len(CARRIERS)):
        sentence = compose("call", {"person": "anna", "topic": "contract", "day": "friday"}, carrier, "day")
        assert "{" not in sentence.translation and sentence.translation.endswith("welcher Tag")
    assert sentence.translation == "lass uns Anna am Freitag anrufen und den Vertrag besprechen welcher Tag"


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_sentences_are_as_corpus_and_normaliser_leave_them(split):
    for sentence in distinct_sentences(split, 1, 200):
        assert as_written(sentence.text, "en") == (sentence.text, {})
        assert plain_words(sentence.text, "whisper_english") == sentence.text
        assert as_written(sentence.text_german, "de") == (sentence.text_german, {})
        assert plain_words(sentence.text_german, "whisper_basic") == sentence.text_german


def test_the_llm_is_taught_the_instructions_of_the_params():
    params = load_params(PARAMS)
    taught = set(itertools.chain.from_iterable(INSTRUCTIONS.values()))
    asked = [line for behaviour in params.continuations.behaviours.values() for line in behaviour.instructions]
    asked += [line for task in params.evaluate.tasks.values() for line in task.instructions]
    assert taught >= set(asked)


def test_asking_for_more_sentences_than_there_are_says_so(monkeypatch):
    monkeypatch.setattr(grammar, "INTENTS", {"alarm": INTENTS["alarm"]})
    with pytest.raises(ValueError, match="distinct dev sentences, 1000 were asked for"):
        distinct_sentences("dev", 1, 1000)
