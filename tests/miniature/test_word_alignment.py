"""Which English word a German one stands for is found from pairs of sentences alone."""

from blsp.miniature.grammar import distinct_sentences
from blsp.miniature.lexicon import SLOTS
from blsp.miniature.word_alignment import stands_for


def test_words_that_come_and_go_together_stand_for_each_other():
    pairs = [("das haus", "the house"), ("das buch", "the book"), ("ein buch", "a book")]
    aligned = stands_for([(german.split(), english.split()) for german, english in pairs])
    assert aligned == [["the", "house"], ["the", "book"], ["a", "book"]]


def test_the_miniatures_days_shops_and_numbers_are_found():
    train = distinct_sentences("train", 1, 500)
    pairs = [(sentence.text_german.split(), sentence.text.split()) for sentence in train]
    single = {
        german.lower(): english
        for values in SLOTS.values()
        for english, german in values.items()
        if " " not in english + german
    }
    found = [
        english == single[german]
        for (words, _), aligned in zip(pairs, stands_for(pairs), strict=True)
        for german, english in zip(words, aligned, strict=True)
        if german in single
    ]
    assert len(found) > 500 and sum(found) > 0.95 * len(found)
