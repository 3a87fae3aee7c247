"""Scores with bootstrap intervals: every figure is its value, its interval, its sample size and its signature."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np


class Figure(TypedDict):
    """One number of the report: the interval (low, high) is the percentile bootstrap over items."""

    value: float
    low: float
    high: float
    n: int
    signature: str


@dataclass(frozen=True)
class Resampling:
    """How intervals are made, and how transcripts are written before they are compared."""

    samples: int
    confidence: float
    seed: int
    normalizer: str
    normalize: Callable[[str], str]


def bootstrap(
    statistics: np.ndarray, compute: Callable[[np.ndarray], float], resampling: Resampling, signature: str
) -> Figure:
    """The figure whose value is `compute` of the summed statistics (n items, k counts).

    Items are drawn with replacement; all systems share the seed, so they are resampled alike.
    """
    n = len(statistics)
    rng = np.random.default_rng(resampling.seed)
    drawn = [compute(statistics[rng.integers(0, n, n)].sum(0)) for _ in range(resampling.samples)]
    tail = 50 * (1 - resampling.confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    signature = f"{signature}|bootstrap:{resampling.samples}|seed:{resampling.seed}"
    return Figure(value=float(compute(statistics.sum(0))), low=float(low), high=float(high), n=n, signature=signature)


def word_error_rate(answers: list[str], references: list[str], resampling: Resampling) -> Figure:
    """Substitutions, deletions and insertions over reference words, both texts normalised; a fraction."""
    import jiwer

    counts = []
    for answer, reference in zip(answers, references, strict=True):
        words = jiwer.process_words(resampling.normalize(reference), resampling.normalize(answer))
        errors = words.substitutions + words.deletions + words.insertions
        counts.append((errors, words.hits + words.substitutions + words.deletions))
    signature = f"wer|jiwer:{_version('jiwer')}|normalizer:{resampling.normalizer}"
    return bootstrap(np.array(counts, dtype=float), lambda total: total[0] / total[1], resampling, signature)


def bleu(answers: list[str], references: list[str], resampling: Resampling) -> Figure:
    """Corpus BLEU, 0 to 100, case and punctuation as written (sacrebleu's defaults)."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    counter = BLEU(effective_order=True)  # counts alike; only its unused score would differ
    rows = []
    for answer, reference in zip(answers, references, strict=True):
        score = counter.sentence_score(answer, [reference])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    orders = metric.max_ngram_order

    def compute(total: np.ndarray) -> float:
        whole = total.astype(int).tolist()
        correct, possible, (system, reference) = (
            whole[:orders],
            whole[orders : 2 * orders],
            whole[2 * orders :],
        )
        return metric.compute_bleu(correct, possible, system, reference, smooth_method="exp").score

    metric.corpus_score(answers, [references])  # the signature then tells the number of references
    return bootstrap(np.array(rows), compute, resampling, f"bleu|{metric.get_signature()}")


def accuracy(answers: list[str], references: list[str], resampling: Resampling) -> Figure:
    """The share of answers equal to their references, but for case, punctuation and underscores."""
    hits = [[plain(answer) == plain(reference)] for answer, reference in zip(answers, references, strict=True)]
    return bootstrap(
        np.array(hits, dtype=float),
        lambda total: total[0] / len(hits),
        resampling,
        "accuracy|exact match, plain words",
    )


def answer_accuracy(answers: list[str], references: list[str], resampling: Resampling) -> Figure:
    """As accuracy, of what follows "the answer is" where an answer says so."""
    figure = accuracy([plain(answer).removeprefix("the answer is ") for answer in answers], references, resampling)
    return figure | {"signature": f"{figure['signature']}|without: the answer is"}


def ratio(numerators: list[float], denominators: list[float], resampling: Resampling, signature: str) -> Figure:
    """The sum of numerators over the sum of denominators, resampled over items."""
    statistics = np.array([numerators, denominators], dtype=float).T
    return bootstrap(statistics, lambda total: total[0] / total[1], resampling, signature)


def plain(text: str) -> str:
    """The text in lower case, its words separated by single spaces, without punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
