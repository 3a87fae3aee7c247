import pytest

from blsp.data.records import Unusable
from blsp.data.text import LONGEST, normalise, normalizer_of, normalizer_of_all, sentence_key


@pytest.mark.parametrize(
    ("text", "normalizer", "expected"),
    [
        ("I can't find Mr. Smith's lamp!", "whisper_english", "i can not find mister smith is lamp"),
        ("TWENTY FIVE DOLLARS <PERIOD>", "whisper_english", "$25"),
        ("Können Sie das Licht anmachen?", "whisper_basic", "können sie das licht anmachen"),
        ("  Hello,\tworld \n again. ", "none", "Hello, world again."),
        ("HELLO <COMMA> IS IT YOU <QUESTIONMARK>", "none", "HELLO, IS IT YOU?"),
        ("stop <exclamationpoint> go <period>", "none", "stop! go."),
        ("turn [noise] on <SIL> the (laughter) light {breath}", "none", "turn on the light"),
        ("look at [appendix] a", "none", "look at [appendix] a"),
        ("हिन्दी में, बोलो।", "whisper_basic", "हिन्दी में बोलो"),
        ("สวัสดีค่ะ ร้าน", "whisper_basic", "สวัสดีค่ะ ร้าน"),
        ("\ufeffno\0thing\x1b here\x85", "none", "no thing here"),
    ],
)
def test_normalise(text, normalizer, expected):
    assert normalise(text, normalizer) == expected


@pytest.mark.parametrize("normalizer", ["whisper_english", "whisper_basic", "none"])
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
def test_a_text_without_words_is_refused_with_its_reason(text, normalizer, reason):
    with pytest.raises(Unusable) as caught:
        normalise(text, normalizer)
    assert caught.value.reason == reason


def test_a_refusal_of_a_long_text_is_short():
    for text in ("." * LONGEST, "a" * 10 * LONGEST):
        with pytest.raises(Unusable) as caught:
            normalise(text, "none")
        assert len(str(caught.value)) < 300


def test_the_normaliser_follows_the_language_unless_one_is_named():
    english = ["en", "EN-gb", "en_US", "eng", "English"]
    assert {normalizer_of(language, "whisper") for language in english} == {"whisper_english"}
    assert {normalizer_of(language, "whisper") for language in ("de", "enf", "", None)} == {"whisper_basic"}
    assert {normalizer_of("de", name) for name in ("whisper_english", "none")} == {"whisper_english", "none"}
    assert normalizer_of_all(["en", "en-GB"], "whisper") == "whisper_english"
    assert normalizer_of_all(["en", "de"], "whisper") == normalizer_of_all([], "whisper") == "whisper_basic"
    assert normalizer_of_all(["en", "de"], "none") == "none"


def test_sentence_key_ignores_case_and_marks_only():
    assert sentence_key("Turn on, the light!") == sentence_key("turn on the light")
    assert sentence_key("Straße 5") == sentence_key("STRASSE 5")
    assert sentence_key("turn on the light") != sentence_key("turn on the lights")
