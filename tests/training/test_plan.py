"""The plan: every utterance once an epoch, whatever the number of processes, with little padding."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from benchmarks.workload import librispeech_seconds
from blsp.training.plan import MICRO_BATCH_POSITIONS, Choice, Plan, Sizes


def librispeech_like(rows=4000, seed=0):
    """Lengths drawn like LibriSpeech's: 1.3 to 35 s, mean 12.3 s; texts to match."""
    rng = np.random.default_rng(seed)
    frames = np.ceil(librispeech_seconds(rows, rng) * 50).astype(int)
    responses = rng.integers(15, 65, rows)
    positions = 8 + frames // 8 + responses  # what comes after the prefix, read once
    return Sizes(frames, {"continuation": positions}, {"continuation": responses}, frame_cost=0.05)


def small(lacks=()):
    targets = np.array([0 if row in lacks else 2 + row % 3 for row in range(10)])
    sizes = {"a": targets + 5, "b": np.full(10, 9)}
    return Sizes(np.arange(10, 20), sizes, {"a": targets, "b": np.full(10, 4)}, 0.1)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 50])
def test_every_utterance_once_an_epoch(batch_size):
    plan = Plan(small(), {"a": 1.0}, batch_size, seed=1)
    for epoch in range(2):
        steps = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        assert sorted(c.row for step in steps for c in plan.batch(step)) == list(range(10))


def test_a_step_is_the_same_whichever_was_asked_for_before():
    one, other = (Plan(small(), {"a": 0.5, "b": 0.5}, 3, seed=4) for _ in range(2))
    forward = [one.batch(step) for step in range(12)]
    assert [other.batch(step) for step in reversed(range(12))][::-1] == forward
    assert [Plan(small(), {"a": 0.5, "b": 0.5}, 3, seed=5).batch(step) for step in range(12)] != forward
    assert forward[:4] != forward[4:8]


def drawn_shares(has, shares, epochs=40):
    """How often each behaviour is drawn where `has` says, by behaviour, which rows have it."""
    targets = {name: np.where(rows, 4, 0) for name, rows in has.items()}
    rows = len(next(iter(has.values())))
    plan = Plan(Sizes(np.full(rows, 10), targets, targets, 0.1), shares, 50, seed=1)
    drawn = [choice for step in range(epochs * plan.batches_per_epoch) for choice in plan.batch(step)]
    assert all(has[choice.behaviour][choice.row] for choice in drawn), "only where it was written"
    assert len({choice.row for choice in drawn}) * epochs == len(drawn), "all others once an epoch"
    counts = Counter(choice.behaviour for choice in drawn)
    return {name: counts[name] / len(drawn) for name in has}


def test_behaviours_come_in_their_shares_wherever_they_were_written():
    everywhere, fifth = np.full(500, True), np.arange(500) % 5 == 0
    shares = {"a": 0.9, "b": 0.1}
    for has in (
        {"a": everywhere, "b": everywhere},
        {"a": everywhere, "b": fifth},
        {"a": ~fifth | (np.arange(500) < 400), "b": fifth},
    ):
        assert drawn_shares(has, shares) == pytest.approx(shares, abs=0.01)
    three = {"a": everywhere, "b": fifth, "c": np.arange(500) % 3 == 0}
    assert drawn_shares(three, {"a": 0.7, "b": 0.1, "c": 0.2}) == pytest.approx(
        {"a": 0.7, "b": 0.1, "c": 0.2}, abs=0.01
    )


def test_what_was_written_too_seldom_is_drawn_wherever_it_was():
    some = np.arange(500) % 20 == 0
    assert drawn_shares({"a": np.full(500, True), "b": some}, {"a": 0.9, "b": 0.1})["b"] == pytest.approx(
        0.05, abs=1e-3
    )
    only = drawn_shares({"a": ~some, "b": some}, {"a": 1.0, "b": 0.0})
    assert only == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_processes_share_a_batch_without_loss_or_repetition(processes):
    plan = Plan(librispeech_like(200), {"continuation": 1.0}, 5, seed=2)
    for step in range(10):
        choices = plan.batch(step)
        parts = plan.micro_batches(choices, budget=300, processes=processes)
        assert sorted(c.row for part in parts for micro in part for c in micro) == sorted(c.row for c in choices)
        assert len({len(part) for part in parts}) == 1, "every process takes part as often"


def test_micro_batches_keep_to_the_budget_where_they_can():
    plan = Plan(librispeech_like(), {"continuation": 1.0}, 64, seed=2)
    micro = [m for step in range(20) for m in plan.micro_batches(plan.batch(step), 2000, 1)[0]]
    assert max(plan.cost(m) for m in micro) <= 2000
    one = Choice(0, "continuation")
    assert plan.micro_batches([one], budget=1, processes=1) == [[[one]]]
    assert plan.micro_batches([], budget=1, processes=2) == [[[]], [[]]]


def test_micro_batches_take_the_least_work():
    """Of all ways to cut the utterances in their order of cost, on lengths of two kinds."""
    rng = np.random.default_rng(1)

    def work(micro_batches):
        return sum(plan.cost(micro) + MICRO_BATCH_POSITIONS for micro in micro_batches)

    for _ in range(100):
        count = int(rng.integers(1, 10))
        frames, heard, read = (rng.choice([10, 400], count) + rng.integers(0, 90, count) for _ in range(3))
        sizes = Sizes(frames, {"a": heard, "b": read}, {"a": heard, "b": read}, frame_cost=0.9)
        plan = Plan(sizes, {"a": 1.0, "b": 0.0}, count, seed=1)
        choices = [Choice(row, "ab"[rng.integers(2)]) for row in range(count)]
        budget = float(rng.integers(300, 4000))
        order = sorted(choices, key=lambda choice: plan.cost([choice]))
        ways = [
            [order[start:end] for start, end in pairwise([0, *cuts, count])]
            for pieces in range(count)
            for cuts in combinations(range(1, count), pieces)
        ]
        allowed = [way for way in ways if all(plan.cost(piece) <= budget or len(piece) == 1 for piece in way)]
        (found,) = plan.micro_batches(choices, budget, processes=1)
        assert found in allowed
        assert work(found) == pytest.approx(min(map(work, allowed)))


@pytest.mark.parametrize("processes", [2, 8])
def test_processes_have_like_work(processes):
    plan = Plan(librispeech_like(), {"continuation": 1.0}, 256, seed=2)
    for step in range(8):
        parts = plan.micro_batches(plan.batch(step), 2000, processes)
        work = [sum(map(plan.cost, part)) for part in parts]
        assert max(work) < 1.1 * np.mean(work)


@pytest.mark.parametrize("batch_size", [16, 48, 256, 768])
def test_little_is_padded_on_lengths_like_librispeech(batch_size):
    """Counted in work: a frame of the encoder costs less than a position of the LLM."""
    sizes = librispeech_like()
    plan = Plan(sizes, {"continuation": 1.0}, batch_size, seed=3)
    needed = cost = 0.0
    for step in range(plan.batches_per_epoch):
        for micro in plan.micro_batches(plan.batch(step), 8000, 1)[0]:
            assert plan.work(micro) == pytest.approx(sum(plan.cost([choice]) for choice in micro))
            needed += plan.work(micro)
            cost += plan.cost(micro)
    assert 1 - needed / cost < 0.08
