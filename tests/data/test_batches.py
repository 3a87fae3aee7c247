"""Training batches: every utterance once an epoch, behaviours in their shares, the same for the same seed."""

import itertools
from collections import Counter

import pytest

from blsp.data.batches import evaluation_batches, training_batches
from blsp.errors import BlspError
from tests.contracts import packed


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = packed.good_rows()
    for row in rows:
        for behaviour, value in row.written.items():
            value["instruction"] = f"do {behaviour}"
    packed.pack(rows)
    return [row.id for row in rows if row.split == "train"]


def test_every_utterance_is_in_an_epoch_once(corpus):
    batches = training_batches({"continuation": 0.5, "repetition": 0.5}, batch_size=4, seed=1)
    for _ in range(2):
        epoch = list(itertools.chain.from_iterable(itertools.islice(batches, 2)))
        assert sorted(example.id for example in epoch) == sorted(corpus)
    example = epoch[0]
    assert example.load_samples().shape == (example.num_samples,) == (16_000,) and example.instruction.startswith("do ") and example.transcript
    assert example.response_ids == [5, 6, 7]


def test_a_seed_gives_the_same_batches_again(corpus):
    def drawn(seed):
        batches = training_batches({"continuation": 0.5, "repetition": 0.5}, 4, seed)
        return [[(e.id, e.instruction) for e in batch] for batch in itertools.islice(batches, 6)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_behaviours_come_in_their_shares(corpus):
    batches = training_batches({"continuation": 0.9, "repetition": 0.1}, 8, 1)
    counts = Counter(e.instruction for batch in itertools.islice(batches, 100) for e in batch)
    assert 0.05 < counts["do repetition"] / counts.total() < 0.15
    only = training_batches({"continuation": 1.0, "repetition": 0.0}, 8, 1)
    assert {e.instruction for e in next(only)} == {"do continuation"}


def test_evaluation_batches_hold_what_has_the_behaviour(corpus, tmp_path):
    assert [len(batch) for batch in evaluation_batches("dev", "repetition", 5)] == [5, 3]


def test_a_corpus_without_continuations_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = packed.good_rows()
    for row in rows:
        row.written = dict.fromkeys(packed.BEHAVIOURS)
    packed.pack(rows)
    with pytest.raises(BlspError, match="no train row of continuation; run `blsp continuations`"):
        next(training_batches({"continuation": 1.0}, 4, 1))
