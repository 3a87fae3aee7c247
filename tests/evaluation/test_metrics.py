"""The scores: by hand, against the libraries' own corpus scores, and with honest intervals."""

import pytest
from sacrebleu.metrics.bleu import BLEU

from blsp.data.text import plain_words
from blsp.evaluation.metrics import Resampling, accuracy, answer_accuracy, bleu, plain, ratio, word_error_rate

RESAMPLING = Resampling(200, 0.95, 1, "whisper_english", lambda text: plain_words(text, "whisper_english"))


def test_word_error_rate_counts_words_over_the_corpus_after_normalising():
    figure = word_error_rate(
        ["Turn on the fan!", "play music"], ["turn on the fan", "please play some music"], RESAMPLING
    )
    assert figure["value"] == 2 / 8 and figure["n"] == 2
    assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 0.5
    assert "jiwer" in figure["signature"] and "whisper_english" in figure["signature"]


def test_word_error_rate_of_an_empty_answer_is_all_deletions():
    assert word_error_rate([""], ["turn on the fan"], RESAMPLING)["value"] == 1


def test_bleu_is_sacrebleus_corpus_score():
    answers = ["schalte das Licht im Flur ein", "bestelle Suppe und Tee für Anna", "rufe Peter an"]
    references = ["schalte das Licht im Flur aus", "bestelle Suppe und Tee für Anna", "rufe Martin am Montag an"]
    figure = bleu(answers, references, RESAMPLING)
    assert figure["value"] == pytest.approx(BLEU().corpus_score(answers, [references]).score)
    assert "tok:13a" in figure["signature"] and "nrefs:1" in figure["signature"]
    assert bleu(references, references, RESAMPLING)["value"] == pytest.approx(100)


def test_accuracy_overlooks_case_punctuation_and_underscores():
    figure = accuracy(["Device on.", "weather", "timer"], ["device_on", "weather", "alarm"], RESAMPLING)
    assert figure["value"] == pytest.approx(2 / 3)
    assert plain("  Device_ON! ") == "device on"


def test_an_answer_in_a_sentence_is_an_answer():
    figure = answer_accuracy(["The answer is butter.", "butter", "It is tea."], ["butter", "butter", "tea"], RESAMPLING)
    assert figure["value"] == pytest.approx(2 / 3) and "the answer is" in figure["signature"]


def test_intervals_widen_with_fewer_items_and_repeat_themselves():
    few = ratio([1.0, 0.0] * 5, [1.0] * 10, RESAMPLING, "x")
    many = ratio([1.0, 0.0] * 200, [1.0] * 400, RESAMPLING, "x")
    assert few["high"] - few["low"] > 3 * (many["high"] - many["low"])
    assert ratio([1.0, 0.0] * 5, [1.0] * 10, RESAMPLING, "x") == few
