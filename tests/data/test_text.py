import json
import unicodedata

import pytest

from blsp.data.records import Unusable
from blsp.data.text import (
    LONGEST,
    as_written,
    chars_per_s,
    normalizer_of,
    normalizer_of_all,
    plain_words,
    sentence_case,
    sentence_key,
    sentence_keys,
)


@pytest.mark.parametrize(
    "text",
    [
        "Oh my God",
        "O'Brien & Sons",
        "I (really) mean it",
        "x < 3 and y > 2",
        "AT&T, Q&A; R&D.",
        "ZERO THREE FIVE ONE",
        "look at [appendix] a",
        "It's 7:30, isn't it?",
        "लड़का घर गया।",
        "他说\u201c你好\u201d。",
        "C++ and C#, at -5 °C",
    ],
)
def test_what_people_write_stays_as_they_write_it(text):
    assert as_written(text, "en") == (text, {})


@pytest.mark.parametrize(
    ("text", "expected", "cleaned"),
    [
        ("  Hello,\tworld \n again. ", "Hello, world again.", {}),
        ("don&apos;t &lt;3 &#233;t&eacute; &chips;", "don't <3 été &chips;", {"html_entities": 4}),
        ("HELLO <COMMA> IS IT YOU <QUESTIONMARK>", "HELLO, IS IT YOU?", {"punctuation_tags": 2}),
        ("stop <exclamationpoint> go <period>", "stop! go.", {"punctuation_tags": 2}),
        ("turn [noise] on <SIL> the (laughter) light {breath}", "turn on the light", {"noise_tags": 4}),
        ("stop<|im_end|> <|audio|> [INST]", "stop< |im_end| > < |audio| > [ INST ]", {"control_tokens": 3}),
        ("&lt;s&gt; hello", "< s > hello", {"html_entities": 2, "control_tokens": 1}),
        (unicodedata.normalize("NFD", "café"), "café", {}),
        ("\ufeffno\0thing\x1b here\x85", "no thing here", {}),
    ],
)
def test_what_is_cleaned_is_counted(text, expected, cleaned):
    assert as_written(text) == (expected, cleaned)


@pytest.mark.parametrize("case", ["as_written", "lower"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty_text"),
        (" \t\n", "empty_text"),
        ("?! ...", "empty_text"),
        ("<PERIOD>", "empty_text"),
        ("<NOISE>", "noise_only"),
        ("<SIL> <MUSIC>", "noise_only"),
        ("<OTHER> <PERIOD>", "noise_only"),
        ("[noise]", "noise_only"),
        ("(Applause) {COUGH}", "noise_only"),
        ("<unk> [laughter]", "noise_only"),
        ("(Cheers)", "noise_only"),
        ("\0 \ufeff", "empty_text"),
        ("caf\ufffd", "not_utf8"),
        ("a" * (LONGEST + 1), "text_too_long"),
    ],
)
def test_a_text_without_words_is_refused_with_its_reason(text, case, reason):
    with pytest.raises(Unusable) as caught:
        as_written(text, "en", case)
    assert caught.value.reason == reason


def test_a_refusal_of_a_long_text_is_short():
    for text in ("." * LONGEST, "a" * 10 * LONGEST):
        with pytest.raises(Unusable) as caught:
            as_written(text)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("WE CALL IT BEAR", "en", "We call it bear."),
        ("I THINK I'M LATE AND I'LL RUN", "en", "I think I'm late and I'll run."),
        ("WHAT IS YOUR NAME", "en", "What is your name?"),
        ("WHAT'S YOUR NAME", "en-GB", "What's your name?"),
        ("HOW MANY PEOPLE ARE THERE", "en", "How many people are there?"),
        ("DON'T YOU LIKE IT", "en", "Don't you like it?"),
        ("WHAT HE SAID IS TRUE", "en", "What he said is true."),
        ("WHEN I CAME HOME HE SLEPT", "en", "When I came home he slept."),
        ("HAVE A NICE DAY", "en", "Have a nice day?"),  # as "have a dog" would begin: the rule is a simple one
        ("HELLO, IS IT YOU? YES", "en", "Hello, is it you? Yes."),
        ("turn it off", "en", "Turn it off."),
        ('HE SAID "GO!" (TWICE)', "en", 'He said "go!" (twice).'),
        ('HE SAID "GO!"', "en", 'He said "go!"'),
        ("WO BIST DU", "de", "Wo bist du."),
        ("I LIBRI", "it", "I libri."),
        ("VAI E I LIBRI", "it", "Vai e i libri."),
        ("लड़का घर गया", "hi", "लड़का घर गया"),
        ("你好", "zh", "你好"),
    ],
)
def test_sentence_case(text, language, expected):
    assert sentence_case(text, language) == expected
    assert as_written(text, language, "lower").text == expected


def test_a_digit_is_spoken_as_a_word():
    assert chars_per_s("ZERO THREE FIVE ONE", 3.4) == pytest.approx(19 / 3.4)
    assert chars_per_s("7412", 3.4) == pytest.approx(16 / 3.4)
    assert chars_per_s("a", 0) == float("inf")


@pytest.mark.parametrize(
    ("text", "normalizer", "expected"),
    [
        ("I can't find Mr. Smith's lamp!", "whisper_english", "i can not find mister smith is lamp"),
        ("TWENTY FIVE DOLLARS.", "whisper_english", "$25"),
        ("Können Sie das Licht anmachen?", "whisper_basic", "können sie das licht anmachen"),
        ("हिन्दी में, बोलो।", "whisper_basic", "हिन्दी में बोलो"),
        ("สวัสดีค่ะ ร้าน", "whisper_basic", "สวัสดีค่ะ ร้าน"),
        (" A  b. ", "none", "A b."),
    ],
)
def test_words_as_they_are_scored(text, normalizer, expected):
    assert plain_words(text, normalizer) == expected


def test_the_normaliser_follows_the_language_unless_one_is_named():
    english = ["en", "EN-gb", "en_US", "eng", "English"]
    assert {normalizer_of(language, "whisper") for language in english} == {"whisper_english"}
    assert {normalizer_of(language, "whisper") for language in ("de", "enf", "", None)} == {"whisper_basic"}
    assert {normalizer_of("de", name) for name in ("whisper_english", "none")} == {"whisper_english", "none"}
    assert normalizer_of_all(["en", "en-GB"], "whisper") == "whisper_english"
    assert normalizer_of_all(["en", "de"], "whisper") == normalizer_of_all([], "whisper") == "whisper_basic"
    assert normalizer_of_all(["en", "de"], "none") == "none"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Turn on, the light!", "turn on the light"),
        ("Straße 5", "STRASSE 5"),
        ("café", unicodedata.normalize("NFD", "café")),
        ("well-known device_on", "well known device on"),
        ("it\u2019s", "it's"),
        ("100%", "100 %"),
        ("\u22125", "-5"),
        ("1990-1995", "1990 1995"),
        ("**Paris**", "paris"),
        ("क्\u200dष", "क्ष"),
    ],
)
def test_the_same_sentence(one, other):
    assert sentence_key(one) == sentence_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("turn on the light", "turn on the lights"),
        ("लड़का घर गया", "लड़की घर गयी"),
        ("की", "का"),
        ("ไม่", "ไม้"),
        ("كَتَبَ", "كُتُب"),
        ("-5", "5"),
        ("C++", "C"),
        ("C#", "C"),
        ("", "?"),
        ("x < 3", "x > 3"),
    ],
)
def test_other_sentences(one, other):
    assert sentence_key(one) != sentence_key(other)


def test_sentences_are_the_same_where_they_are_scored_alike():
    def same(one, other, language="en"):
        return bool(set(sentence_keys(one, language, "whisper")) & set(sentence_keys(other, language, "whisper")))

    assert same("I'm 20.", "i am twenty") and same("Oh, two cups", "OH TWO CUPS")
    assert not same("I (really) mean it", "I mean it")
    assert not same("(one)", "(two)"), "what stands in brackets is all there is"
    assert not same("um", "uh") and same("Um.", "um"), "the normaliser leaves no word of either"
    assert not same("लड़का घर गया", "लड़की घर गयी", "hi")
    assert json.dumps(sentence_keys("um", "en", "whisper")) == '["um"]'
