import pytest

from blsp.data.records import Unusable
from blsp.data.text import normalise, sentence_key


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
    ],
)
def test_a_text_without_words_is_refused_with_its_reason(text, normalizer, reason):
    with pytest.raises(Unusable) as caught:
        normalise(text, normalizer)
    assert caught.value.reason == reason


def test_sentence_key_ignores_case_and_marks_only():
    assert sentence_key("Turn on, the light!") == sentence_key("turn on the light")
    assert sentence_key("Straße 5") == sentence_key("STRASSE 5")
    assert sentence_key("turn on the light") != sentence_key("turn on the lights")
