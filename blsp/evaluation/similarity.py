"""How alike two sets of states are: linear CKA (Kornblith et al. 2019), layer by layer, with what chance would give.

Debiased, with the unbiased HSIC of Song et al. (2012, eq. 5), as Nguyen et al. (2021) use it. The plain index rises
with the width: of 400 independent utterances in 4,096 dimensions it is 0.9, where nothing is shared. The debiased one
is 0 there, whatever the number of rows and the width, so that layers and models of any size compare; it may be a
little below 0. Rotation, shift and one scale for all leave it as it is.
Axes: N rows, D width, G groups.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blsp.evaluation.lengths import length_bins
from blsp.evaluation.resampling import Figure, Resampling
from blsp.evaluation.states import States

SHUFFLES = 20
GROUPS = 20
FEWEST = 8  # utterances of which there is a figure: without any group of them four are left
KINDS = {
    "responses": "the states that predict the response's tokens",
    "content": "the mean state of an utterance's speech vectors, and of its transcript's tokens",
    "prompt_end": "the state that predicts the response's first token",
}


def similarity(speech: States, text: States, resampling: Resampling, label: str) -> dict[str, dict[str, list[Figure]]]:
    """{kind of states: {"cka": a figure a layer, "shuffled": a figure a layer}}; JSON as it is.

    `label` says in the signatures what the LLM was asked. The figure of chance is the mean over SHUFFLES of which
    speech goes with which text; its interval is their range. The interval of the other is of the delete-a-group
    jackknife over utterances: drawing utterances with replacement would count some as like themselves. At layer 0 the
    tokens of responses are the same on both sides (1), and so is the prompt's last one for all utterances (0); what is
    heard shows from layer 1 on. In memory: matrices of rows by rows, 32 MB each of 2,048 rows.
    """
    layers = [_of_all_kinds(speech, text, layer, resampling, label) for layer in range(len(text.content))]
    return {kind: {name: [layer[kind][name] for layer in layers] for name in ("cka", "shuffled")} for kind in KINDS}


def last_layer(speech: States, text: States, resampling: Resampling, label: str) -> dict[str, dict[str, Figure]]:
    """{kind of states: {"cka", "shuffled"}} as in `similarity`, of the last layer alone; {} of too few utterances."""
    if len(text.ids) < FEWEST:
        return {}
    return _of_all_kinds(speech, text, len(text.content) - 1, resampling, label)


def last_layer_by_length(
    speech: States, text: States, lengths_s: Sequence[float], resampling: Resampling, label: str
) -> list[dict[str, Any]]:
    """{"from_s", "to_s"} and what `last_layer` gives of each of `length_bins`, but those of too few utterances."""
    found = []
    for some in length_bins(lengths_s):
        figures = last_layer(speech.of(some.members), text.of(some.members), resampling, f"{label}|{some.name}")
        found += [{"from_s": some.from_s, "to_s": some.to_s} | figures] if figures else []
    return found


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """The debiased linear CKA of states x (N, D) and y (N, D'), row by row of the same things; at least 4 rows."""
    one, other, kept = _gram(x), _gram(y), np.ones((len(x), 1))
    return float(_cka(_hsic(one, other, kept), _hsic(one, one, kept), _hsic(other, other, kept))[0])


def _of_all_kinds(
    speech: States, text: States, layer: int, resampling: Resampling, label: str
) -> dict[str, dict[str, Figure]]:
    assert speech.ids == text.ids and np.array_equal(speech.utterance, text.utterance)
    each = np.arange(len(text.ids))
    whose = {"responses": text.utterance, "content": each, "prompt_end": each}
    return {
        kind: _of_layer(
            getattr(speech, kind)[layer],
            getattr(text, kind)[layer],
            whose[kind],
            resampling,
            f"{label}|{kind}|layer:{layer}",
        )
        for kind in KINDS
    }


def _of_layer(x: np.ndarray, y: np.ndarray, whose: np.ndarray, resampling: Resampling, label: str) -> dict[str, Figure]:
    from scipy.stats import t

    one, other = _gram(x), _gram(y)
    utterances = int(whose.max()) + 1
    groups = min(GROUPS, utterances)
    rng = np.random.default_rng(resampling.seed)
    group = rng.permutation(np.arange(utterances) % groups)[whose]
    without_group = np.column_stack([group != number for number in range(groups)]).astype(float)
    everything = np.ones((len(x), 1))
    sizes = _hsic(one, one, everything), _hsic(other, other, everything)
    value = float(_cka(_hsic(one, other, everything), *sizes)[0])
    jackknife = _cka(
        _hsic(one, other, without_group), _hsic(one, one, without_group), _hsic(other, other, without_group)
    )
    reach = float(t.ppf((1 + resampling.confidence) / 2, groups - 1) * np.sqrt((groups - 1) * np.var(jackknife)))
    orders = (rng.permutation(len(x)) for _ in range(SHUFFLES))
    chance = [float(_cka(_hsic(one, other[np.ix_(o, o)], everything), *sizes)[0]) for o in orders]
    label = f"linear CKA, debiased|{label}|rows:{len(x)}|seed:{resampling.seed}"
    return {
        "cka": _figure(value, value - reach, value + reach, utterances, f"{label}|jackknife:{groups}"),
        "shuffled": _figure(np.mean(chance), min(chance), max(chance), utterances, f"{label}|shuffled:{SHUFFLES}"),
    }


def _gram(states: np.ndarray) -> np.ndarray:
    """The inner products (N, N) of the centred states (N, D) in float64, 0 on the diagonal."""
    wide = states.astype(np.float64)
    wide -= wide.mean(0)
    gram: np.ndarray = wide @ wide.T
    np.fill_diagonal(gram, 0)
    return gram


def _cka(cross: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The CKA (G,) from the HSIC of both and of each with itself (G,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = cross / np.sqrt(one * other)
    return np.where(np.minimum(one, other) > 0, found, 0.0)  # states that are all the same are like nothing


def _hsic(one: np.ndarray, other: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The unbiased HSIC of Gram matrices (N, N) without their diagonals, times n(n - 3), of the rows kept (N, G)."""
    n = kept.sum(0)
    with_one, with_other = (kept * (matrix @ kept) for matrix in (one, other))
    trace = (kept * ((one * other) @ kept)).sum(0)
    sums = with_one.sum(0) * with_other.sum(0) / ((n - 1) * (n - 2))
    found: np.ndarray = trace + sums - 2 / (n - 2) * (with_one * with_other).sum(0)
    return found


def _figure(value: Any, low: Any, high: Any, n: int, signature: str) -> Figure:
    return Figure(value=float(value), low=float(low), high=float(high), n=n, signature=signature)
