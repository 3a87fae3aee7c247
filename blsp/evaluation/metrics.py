"""Scores: what each metric counts in one answer, and its value from counts summed over answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from blsp.data.text import Normalizer, normalizer_version, plain_words
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


def new_metric(name: str, normalizer: Normalizer) -> Metric:
    """The metric of that name in params.yaml; the normaliser is for word errors."""
    if name == "wer":
        return word_error_rate(normalizer)
    return {"bleu": bleu, "chrf": chrf, "accuracy": accuracy, "contains": contains, "perplexity": perplexity}[name]()


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


def bleu() -> Metric:
    """Corpus BLEU, 0 to 100, case and punctuation as written (sacrebleu's defaults); one answer alone: its own."""
    from sacrebleu.metrics.bleu import BLEU

    return _of_sacrebleu("bleu", BLEU(), BLEU(effective_order=True))


def chrf() -> Metric:
    """Corpus chrF, 0 to 100 (sacrebleu's defaults)."""
    from sacrebleu.metrics.chrf import CHRF

    return _of_sacrebleu("chrf", CHRF(), CHRF())


def accuracy() -> Metric:
    """The share of answers equal to their references, but for case, punctuation and underscores."""
    return Metric(
        name="accuracy",
        higher_is_better=True,
        count=lambda answer, reference: np.array([plain(answer) == plain(reference), 1], dtype=float),
        compute=lambda total: total[0] / total[1],
        quality=lambda counts: float(counts[0]),
        signature="accuracy|exact match, plain words",
    )


def contains() -> Metric:
    """The share of answers in which the reference stands, as whole words, but for case and punctuation.

    A reference may give several right answers, `Paris | the French capital`: one of them will do.
    """

    def count(answer: str, reference: str) -> np.ndarray:
        right = [words for one in reference.split("|") if (words := plain(one))]
        return np.array([any(f" {words} " in f" {plain(answer)} " for words in right), 1], dtype=float)

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


def plain(text: str) -> str:
    """The text in lower case, its words separated by single spaces, without punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def without(beginning: str | None, answer: str) -> str:
    """The answer without the words `beginning` at its start, if it has them: case and spaces do not count."""
    if beginning is None:
        return answer
    words = r"\s+".join(re.escape(word) for word in beginning.split())
    return re.sub(rf"^\s*{words}\b[\s:,]*", "", answer, flags=re.IGNORECASE)


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
