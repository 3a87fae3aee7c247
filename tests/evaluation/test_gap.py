"""The gap by what is asked and by length: of the LLM's own answers, and of every utterance once."""

import json
from itertools import pairwise

import numpy as np
import pytest

from blsp.evaluation.gap import UtteranceGap, answered, gap_by_length, gap_figures, utterance_gaps
from blsp.evaluation.resampling import Resampling
from blsp.evaluation.tasks import Item
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
