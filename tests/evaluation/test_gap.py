"""The gap by what is asked and by length: of the LLM's own answers, and of every utterance once."""

import json
from itertools import pairwise

import numpy as np
import pytest

from blsp.evaluation.gap import (
    UtteranceGap,
    answered,
    floored_figures,
    floored_gaps,
    gap_by_length,
    gap_figures,
    share_figure,
    utterance_gaps,
)
from blsp.evaluation.resampling import Resampling
from blsp.evaluation.tasks import Item, some_of
from blsp.model.chat import build_prompt
from blsp.model.decoding import greedy
from blsp.training.examples import Collator
from blsp.training.objective import AlignmentObjective

RESAMPLING = Resampling(100, 0.95, 1)
TEXTS = ["turn on the fan", "please buy soap", "play"]


@pytest.fixture
def items(clips):
    rows = zip(reversed(clips), TEXTS, strict=True)
    unknown = dict.fromkeys(("translation", "intent", "answer", "language", "speaker", "source"))
    return [Item(f"u{row}", clip, 16_000, text, **unknown) for row, (clip, text) in enumerate(rows)]


def test_responses_are_the_llms_own_answers_to_the_transcripts(tiny_model, items):
    model, processor = tiny_model
    instruction = "Translate the following text into German."
    examples = answered(model, processor, items, instruction, batch_size=2, max_new_tokens=6)
    assert [example.id for example in examples] == ["u2", "u1", "u0"]  # shortest first
    for example in examples:
        item = next(item for item in items if item.id == example.id)
        assert example.transcript == item.transcript and example.load_samples() is item.samples
        prompt = build_prompt(processor.tokenizer, instruction, " " + item.transcript)
        inputs = processor.tokenizer([prompt], add_special_tokens=False, return_tensors="pt")
        [answer] = greedy(model.language_model, processor.tokenizer, 6, **inputs)
        assert list(example.response_ids) == answer.token_ids


def test_rows_are_the_objectives_divergence_whatever_the_batches(tiny_model, items):
    model, processor = tiny_model
    examples = answered(model, processor, items, "Repeat the following text.", batch_size=8, max_new_tokens=5)
    rows = utterance_gaps(model, processor, examples, batch_size=2)
    whole = AlignmentObjective(model).divergence(Collator(processor)(examples))["speech"]
    assert [row["id"] for row in rows] == [example.id for example in examples]
    np.testing.assert_allclose([row["kl"] for row in rows], whole.kl, rtol=1e-3)
    np.testing.assert_allclose([row["agreement"] for row in rows], whole.agreement)
    np.testing.assert_allclose([row["tokens"] for row in rows], whole.tokens)


def gaps(lengths_s: list[float], kl: list[float]) -> list[UtteranceGap]:
    return [
        UtteranceGap(id=f"u{row}", samples=round(length * 1000), kl=value, agreement=8.0, tokens=10.0)
        for row, (length, value) in enumerate(zip(lengths_s, kl, strict=True))
    ]


def test_figures_are_of_tokens_and_say_what_was_asked():
    figures = gap_figures(gaps([1.0, 2.0], [5.0, 1.0]), RESAMPLING, "st")
    assert figures["kl"]["value"] == pytest.approx(0.3) and figures["top1_agreement"]["value"] == pytest.approx(0.8)
    assert "|st|" in figures["kl"]["signature"] and figures["kl"]["n"] == 2


def test_bins_hold_every_utterance_once_and_about_as_many_each():
    lengths_s = [1 + row / 100 for row in range(100)]
    bins = gap_by_length(gaps(lengths_s, [float(row) for row in range(100)]), 1000, RESAMPLING, "st")
    assert [found["kl"]["n"] for found in bins] == [20] * 5
    assert bins[0]["from_s"] == 1.0 and bins[-1]["to_s"] == 1.99
    assert bins[0]["kl"]["value"] == pytest.approx(np.mean(range(20)) / 10)
    assert all(one["to_s"] < other["from_s"] for one, other in pairwise(bins))
    json.dumps(bins, allow_nan=False)


def test_a_gap_has_its_floors_and_the_share_of_the_way_from_anothers_speech(tiny_model, items):
    model, processor = tiny_model
    examples = answered(model, processor, items, "Repeat the following text.", batch_size=8, max_new_tokens=5)
    measured = floored_gaps(model, processor, examples, 2, model.fresh_adapter())
    assert measured["speech"] == utterance_gaps(model, processor, examples, 2)
    found = floored_figures(measured, RESAMPLING, "repetition")
    kl = {name: sum(row["kl"] for row in measured[name]) for name in measured}
    assert found["share"]["value"] == pytest.approx(1 - kl["speech"] / kl["other"])
    assert found["content_share"]["value"] == pytest.approx(1 - kl["content_speech"] / kl["content_other"])
    tokens = [sum(row["tokens"] for row in measured[name]) for name in ("content_speech", "speech")]
    assert found["content_tokens"]["value"] == pytest.approx(tokens[0] / tokens[1]) and tokens[0]
    for floor in ("other", "untrained"):
        assert set(found[floor]) == {"kl", "top1_agreement", "content_kl", "content_top1_agreement"}
        assert f"|{floor}" in found[floor]["kl"]["signature"]
    json.dumps(found, allow_nan=False)
    alone = floored_figures(floored_gaps(model, processor, examples[:1], 2, model.fresh_adapter()), RESAMPLING, "one")
    assert set(alone) == {"kl", "top1_agreement", "untrained"}, "nobody else speaks: there is no other floor"


def test_the_share_over_behaviours_is_their_mean_by_weight():
    one = {"speech": gaps([1, 2], [1.0, 1.0]), "other": gaps([1, 2], [4.0, 4.0])}
    two = {"speech": gaps([1], [3.0]), "other": gaps([1], [4.0])}
    figure = share_figure({"a": one, "b": two}, {"a": 0.9, "b": 0.1}, RESAMPLING)
    assert figure["value"] == pytest.approx(0.9 * 0.75 + 0.1 * 0.25) and figure["n"] == 2
    assert share_figure({"a": {"speech": one["speech"]}}, {"a": 1.0}, RESAMPLING) is None


def test_some_items_are_always_the_same_ones_in_their_order(items):
    many = [Item(**{**vars(items[0]), "id": f"u{number}"}) for number in range(50)]
    some = [item.id for item in some_of(many, 10)]
    assert len(some) == 10 and some == sorted(some, key=lambda id_: int(id_[1:])) != [f"u{n}" for n in range(10)]
    assert [item.id for item in some_of(many[::-1], 10)] == some[::-1]
    assert set(some) < {item.id for item in some_of(many, 20)}
    assert some_of(many, None) == some_of(many, 50) == many
