"""The loop: it learns, leaves the backbones alone, repeats itself bit for bit, and stops on a broken loss."""

import itertools

import pytest
import torch

from blsp.errors import BlspError
from blsp.params import Train
from blsp.training.examples import Collator
from blsp.training.loop import train_adapter
from tests import tiny
from tests.training.test_objective import examples

SETTINGS = Train(
    objective="kd",
    temperature=2.0,
    shares={"repetition": 1.0},
    adapter="conv",
    downsampling=4,
    bottleneck=8,
    encoding="variable",
    steps=20,
    batch_size=3,
    lr=0.01,
    warmup_steps=2,
    weight_decay=0.05,
    clip_norm=1.0,
    validate_every=10,
    seed=1,
)


def trained(pins, clips, settings=SETTINGS, model=None):
    model, processor = (model, tiny.build(pins)[1]) if model else tiny.build(pins)
    rows = examples(clips, processor.tokenizer)
    log = []
    train_adapter(
        model,
        Collator(model, processor, 1 << 20),
        itertools.repeat(rows),
        [rows],
        settings,
        lambda step, figures: log.append({"step": step, **figures}),
    )
    return model, log


@pytest.mark.parametrize("objective", ["kd", "ce"])
def test_training_brings_speech_nearer_to_text_and_moves_only_the_adapter(pins, clips, objective):
    before = tiny.build(pins)[0].state_dict()
    model, log = trained(pins, clips, SETTINGS.model_copy(update={"objective": objective}))
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == set(model.adapter_state())
    assert log[-1]["loss"] < log[0]["loss"]
    assert [record["step"] for record in log] == [10, 20] and log[0].keys() >= {"dev_kl", "dev_top1", "lr"}
    assert log[-1]["lr"] < log[0]["lr"]
    if objective == "kd":
        assert log[-1]["dev_kl"] < log[0]["dev_kl"]


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(pins, clips):
    first, second = (trained(pins, clips)[0].adapter_state() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_not_finite_stops_before_the_update(pins, clips):
    model, _ = tiny.build(pins)
    with torch.no_grad():
        model.multi_modal_projector.norm.weight[0] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    with pytest.raises(BlspError, match="the loss is nan at step 1, on the utterances u0, u1, u2"):
        trained(pins, clips, model=model)
    assert all(
        torch.equal(before[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in model.adapter_state().items()
    )
