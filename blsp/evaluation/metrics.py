"""Scores: what each metric counts in one answer, and its value from counts summed over answers."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import regex

from blsp.data.text import Normalizer, normalizer_version, plain_words, sentence_key
from blsp.evaluation.resampling import Compute

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as Sacrebleu


@dataclass(frozen=True)
class Metric:
    """A score of answers against references.

    `count` gives the counts (K,) of one answer and its reference; None: they are the LLM's to make, beforehand.
    `compute` gives the metric's value from their sum; `quality` what one answer alone is worth by its counts, from 0
    to 1. The signature says what was computed, by which library in which version.
    """

    name: str
    higher_is_better: bool
    count: Callable[[str, str], np.ndarray] | None
    compute: Compute
    quality: Callable[[np.ndarray], float]
    signature: str


ON_NORMALISED = ("wer", "cer")
"""Metrics of normalised texts: a reference of which no word is left ("um") cannot be scored."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_SPACE_WITHIN = regex.compile(rf"(?<=[{_UNSPACED}]) +(?=[{_UNSPACED}])")
SHORT_WORDS = 4  # BLEU counts runs of four


def new_metric(name: str, normalizer: Normalizer, references: Sequence[str] = ()) -> Metric:
    """The metric of that name in params.yaml; the normaliser is for word and character errors, references for BLEU."""
    if name in ON_NORMALISED:
        return {"wer": word_error_rate, "cer": character_error_rate}[name](normalizer)
    if name == "bleu":
        return bleu(references)
    return {"chrf": chrf, "accuracy": accuracy, "contains": contains, "perplexity": perplexity}[name]()


def word_error_rate(normalizer: Normalizer) -> Metric:
    """Substitutions, deletions and insertions over reference words, both texts normalised; a fraction."""
    import jiwer

    def count(answer: str, reference: str) -> np.ndarray:
        words = jiwer.process_words(plain_words(reference, normalizer), plain_words(answer, normalizer))
        errors = words.substitutions + words.deletions + words.insertions
        return np.array([errors, words.hits + words.substitutions + words.deletions], dtype=float)

    return Metric(
        name="wer",
        higher_is_better=False,
        count=count,
        compute=lambda total: total[0] / total[1],
        quality=lambda counts: max(1 - counts[0] / counts[1], 0.0),
        signature=f"wer|jiwer:{version('jiwer')}|normalizer:{normalizer} ({normalizer_version(normalizer)})",
    )


def character_error_rate(normalizer: Normalizer) -> Metric:
    """As `word_error_rate`, of characters: for languages whose words nobody separates.

    Spaces count, but for those between letters of scripts that are written without (Chinese, Japanese, Thai, ...).
    """
    import jiwer

    def characters(text: str) -> str:
        return _SPACE_WITHIN.sub("", plain_words(text, normalizer))

    def count(answer: str, reference: str) -> np.ndarray:
        found = jiwer.process_characters(characters(reference), characters(answer))
        errors = found.substitutions + found.deletions + found.insertions
        return np.array([errors, found.hits + found.substitutions + found.deletions], dtype=float)

    return Metric(
        name="cer",
        higher_is_better=False,
        count=count,
        compute=lambda total: total[0] / total[1],
        quality=lambda counts: max(1 - counts[0] / counts[1], 0.0),
        signature=f"cer|jiwer:{version('jiwer')}|normalizer:{normalizer} ({normalizer_version(normalizer)})",
    )


def bleu(references: Sequence[str] = ()) -> Metric:
    """Corpus BLEU, 0 to 100, case and punctuation as written; one answer alone: its own.

    sacrebleu's defaults, but for two things that follow from the references: its tokenizer for their script, and the
    effective order where all of them have less than four words, for which plain BLEU is 0 whatever the answers.
    """
    from sacrebleu.metrics.bleu import BLEU

    tokenizer = bleu_tokenizer(references)
    whole = BLEU(tokenize=tokenizer)
    is_short = bool(references) and all(len(whole.tokenizer(text).split()) < SHORT_WORDS for text in references)
    return _of_sacrebleu(
        "bleu",
        BLEU(tokenize=tokenizer, effective_order=True) if is_short else whole,
        BLEU(tokenize=tokenizer, effective_order=True),
    )


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer for the script that most references are in.

    zh for Chinese; ja-mecab for Japanese where MeCab and its dictionary are installed (`sacrebleu[ja]`), otherwise
    char, as for the other scripts without spaces; 13a, its default, for all else.
    """
    scripts = Counter(
        "ja-mecab" if regex.search(r"[\p{Hiragana}\p{Katakana}]", text)
        else "zh" if regex.search(r"\p{Han}", text)
        else "char" if regex.search(rf"[{_UNSPACED}]", text)
        else "13a"
        for text in references
    )  # fmt: skip
    found = scripts.most_common(1)[0][0] if scripts else "13a"
    if found == "ja-mecab" and not (find_spec("MeCab") and find_spec("ipadic")):
        return "char"
    return found


def chrf() -> Metric:
    """Corpus chrF, 0 to 100 (sacrebleu's defaults)."""
    from sacrebleu.metrics.chrf import CHRF

    return _of_sacrebleu("chrf", CHRF(), CHRF())


def accuracy() -> Metric:
    """The share of answers equal to their references, but for case, punctuation and underscores (`sentence_key`)."""
    return Metric(
        name="accuracy",
        higher_is_better=True,
        count=lambda answer, reference: np.array([sentence_key(answer) == sentence_key(reference), 1], dtype=float),
        compute=lambda total: total[0] / total[1],
        quality=lambda counts: float(counts[0]),
        signature="accuracy|exact match, plain words",
    )


def contains() -> Metric:
    """The share of answers in which the reference stands, as whole words, but for case and punctuation.

    A reference may give several right answers, `Paris | the French capital`: one of them will do.
    """

    def count(answer: str, reference: str) -> np.ndarray:
        right = [words for one in reference.split("|") if (words := sentence_key(one))]
        return np.array([any(f" {words} " in f" {sentence_key(answer)} " for words in right), 1], dtype=float)

    return Metric(
        name="contains",
        higher_is_better=True,
        count=count,
        compute=lambda total: total[0] / total[1],
        quality=lambda counts: float(counts[0]),
        signature="contains|plain words",
    )


def perplexity() -> Metric:
    """How little the text LLM expects an answer, a token; blsp.evaluation.perplexity counts nats and tokens."""
    return Metric(
        name="perplexity",
        higher_is_better=False,
        count=None,
        compute=lambda total: float(np.exp(total[0] / total[1])),
        quality=lambda counts: float(np.exp(-counts[0] / counts[1])),
        signature="perplexity|text LLM given the true transcript|end token of answers that ended",
    )


def without(beginning: str | None, answer: str) -> str:
    """The answer without the words `beginning` at its start, if it has them: case and spaces do not count.

    A beginning that ends in a letter must end a word; one that ends in a mark ("The answer is:") need not.
    """
    if beginning is None:
        return answer
    words = r"\s+".join(re.escape(word) for word in beginning.split())
    return re.sub(rf"^\s*{words}(?:(?<!\w)|\b)[\s:,]*", "", answer, flags=re.IGNORECASE)


def _of_sacrebleu(name: str, whole: "Sacrebleu", alone: "Sacrebleu") -> Metric:
    def count(answer: str, reference: str) -> np.ndarray:
        # The counts that sacrebleu's own paired tests resample.
        return np.array(whole._extract_corpus_statistics([answer], [[reference]])[0], dtype=float)

    def compute(total: np.ndarray, metric: "Sacrebleu" = whole) -> float:
        return float(metric._compute_score_from_stats(total.astype(int).tolist()).score)

    whole.corpus_score(["a"], [["a"]])  # the signature then tells the number of references
    return Metric(
        name=name,
        higher_is_better=True,
        count=count,
        compute=compute,
        quality=lambda counts: compute(counts, alone) / 100,
        signature=f"{name}|{whole.get_signature()}",
    )
