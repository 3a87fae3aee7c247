"""The scores: by hand, and against the libraries' own corpus scores."""

import jiwer
import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from blsp.evaluation.metrics import (
    accuracy,
    bleu,
    bleu_tokenizer,
    character_error_rate,
    chrf,
    contains,
    new_metric,
    without,
    word_error_rate,
)

GERMAN = (
    ["schalte das Licht im Flur ein", "bestelle Suppe und Tee für Anna", "rufe Peter an"],
    ["schalte das Licht im Flur aus", "bestelle Suppe und Tee für Anna", "rufe Martin am Montag an"],
)


def corpus(metric, answers, references):
    return metric.compute(np.sum([metric.count(*pair) for pair in zip(answers, references, strict=True)], axis=0))


def test_word_error_rate_counts_words_over_the_corpus_after_normalising():
    metric = word_error_rate("whisper_english")
    assert corpus(metric, ["Turn on the fan!", "play music"], ["turn on the fan", "please play some music"]) == 2 / 8
    assert "jiwer" in metric.signature and "whisper_english (whisper-normalizer" in metric.signature
    assert not metric.higher_is_better


def test_word_error_rate_is_jiwers_corpus_score():
    answers = ["a b c d", "", "x y z", "so it is"]
    references = ["a b d d e", "one two", "x y z", "it is so"]
    assert corpus(word_error_rate("none"), answers, references) == pytest.approx(jiwer.wer(references, answers))


def test_an_empty_answer_is_all_deletions_and_no_quality_is_below_zero():
    metric = word_error_rate("none")
    assert corpus(metric, [""], ["turn on the fan"]) == 1
    assert metric.quality(metric.count("a b c d e f", "x y")) == 0


@pytest.mark.parametrize(("metric", "library"), [(bleu(), BLEU()), (chrf(), CHRF())], ids=["bleu", "chrf"])
def test_translations_score_as_sacrebleu_scores_the_corpus(metric, library):
    answers, references = GERMAN
    assert corpus(metric, answers, references) == pytest.approx(library.corpus_score(answers, [references]).score)
    assert corpus(metric, references, references) == pytest.approx(100)
    assert "nrefs:1" in metric.signature and "version:" in metric.signature
    assert metric.quality(metric.count(answers[1], references[1])) == pytest.approx(1)
    assert 0 < metric.quality(metric.count(answers[0], references[0])) < 1


def test_accuracy_overlooks_case_punctuation_and_underscores():
    metric = accuracy()
    found = corpus(metric, ["Device on.", "weather", "timer"], ["device_on", "weather", "alarm"])
    assert found == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "reference"), [("-5", "5"), ("C++", "C"), ("", "?"), ("की", "का"), ("ไม่", "ไม้"), ("كَتَبَ", "كُتُب")]
)
def test_accuracy_keeps_marks_and_signs(answer, reference):
    assert corpus(accuracy(), [answer], [reference]) == 0
    assert corpus(accuracy(), ["cafe\u0301"], ["café"]) == 1, "NFD and NFC are the same"


def test_character_error_rate_is_jiwers_without_spaces_that_nobody_writes():
    metric = character_error_rate("whisper_basic")
    assert corpus(metric, ["今天天气很号"], ["今天天气很好。"]) == pytest.approx(1 / 6)
    assert corpus(metric, ["今天 天气 很好"], ["今天天气很好"]) == 0
    english = ["the cat sat", "a dog"], ["the cats at", "a dog"]
    assert corpus(metric, *english) == pytest.approx(jiwer.cer(english[1], english[0]))
    assert not metric.higher_is_better and "normalizer:whisper_basic" in metric.signature


def test_bleu_splits_words_as_the_references_script_is_written():
    assert bleu_tokenizer([]) == bleu_tokenizer(["guten Tag", "东京"]) == "13a"
    assert bleu_tokenizer(["今天天气很好"]) == "zh" and bleu_tokenizer(["สวัสดีค่ะ"]) == "char"
    assert bleu_tokenizer(["今日は"]) in ("char", "ja-mecab")
    metric = new_metric("bleu", "none", ["今天天气很好"])
    assert corpus(metric, ["今天天气很号"], ["今天天气很好"]) > 50 and "tok:zh" in metric.signature


def test_bleu_of_references_that_are_all_short_is_of_the_words_they_have():
    short = ["guten Tag auch"] * 3
    assert corpus(bleu(), short, short) == 0, "sacrebleu's corpus BLEU"
    assert corpus(bleu(short), short, short) == pytest.approx(100) and "eff:yes" in bleu(short).signature
    one_long = [*short, "guten Tag auch allen"]
    assert "eff:no" in bleu(one_long).signature and corpus(bleu(one_long), one_long, one_long) == pytest.approx(100)


def test_words_before_an_answer_are_dropped_where_they_are_whole_words():
    assert without("The answer is", " the  answer is: butter.") == "butter."
    assert without("The answer is", "butter") == "butter"
    assert without("The answer is", "The answer isn't") == "The answer isn't"
    assert without("The answer is:", "The answer is: 42") == without("The answer is:", "the answer is:42") == "42"
    assert without(None, "The answer is tea") == "The answer is tea"


@pytest.mark.parametrize("name", ["wer", "cer", "bleu", "chrf", "accuracy"])
def test_metrics_go_by_their_names(name):
    metric = new_metric(name, "none")
    assert metric.name == name and metric.signature.startswith(name)


def test_an_answer_contains_the_reference_as_whole_words_in_any_of_its_wordings():
    metric = contains()
    reference = "Paris | the French capital"
    answers = ["It is Paris.", "the FRENCH capital, of course", "Parisian", "the capital", ""]
    assert [metric.count(answer, reference).tolist() for answer in answers] == [[1, 1], [1, 1], [0, 1], [0, 1], [0, 1]]
    assert metric.count("anything", "|").tolist() == [0, 1], "no wording stands in every answer"
    assert corpus(new_metric("contains", "whisper"), answers, [reference] * 5) == 2 / 5 and metric.higher_is_better
