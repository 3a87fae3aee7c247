"""The loop: it learns, leaves the backbones alone, goes on where it was stopped, and stops on a broken loss."""

import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from blsp.errors import BlspError
from blsp.training.checkpoint import Checkpoints
from blsp.training.examples import Collator
from blsp.training.loop import rate_at, train_adapter
from blsp.training.plan import Plan, Sizes
from blsp.training.prefixes import prompt_prefixes
from blsp.training.switches import set_switches
from tests import tiny
from tests.training.test_objective import examples

SETTINGS = tiny.train_settings(
    shares={"repetition": 1.0},
    bottleneck=8,
    steps=20,
    batch_size=3,
    micro_batch_tokens=100_000,
    encoder_cache_gib=0,
    checkpoint_every=4,
    lr=0.01,
    warmup_steps=2,
    validate_every=10,
)


def training(pins, clips, scratch, settings=SETTINGS, model=None, log=None, on_example=lambda choice: None):
    """A training run on three utterances; the model, the log, and the rows in the order they were learned from."""
    model, processor = (model, tiny.build(pins)[1]) if model else tiny.build(pins)
    rows = examples(clips, processor.tokenizer)
    frames = np.array([processor.frame_count(len(clip)) for clip in clips])
    targets = np.array([len(e.response_ids) for e in rows])
    plan = Plan(
        Sizes(frames, {"repetition": 12 + targets}, {"repetition": targets}), settings.shares, settings.batch_size, 1
    )
    log, seen = [] if log is None else log, []

    def example(choice):
        seen.append(choice.row)
        on_example(choice)
        return rows[choice.row]

    set_switches(model, settings)
    train_adapter(
        model,
        Collator(processor, prefixes=prompt_prefixes(processor, [rows[0].prompt])),
        plan,
        example,
        {"repetition": [rows]},
        settings,
        Checkpoints({"run": 1}, scratch),
        lambda step, figures: log.append({"step": step, **figures}),
    )
    return model, log, seen


def assert_same_steps(pins, one, other):
    """Both adapters have come from where training starts to the same place, to rounding.

    As far as each tensor has moved as a whole: AdamW divides a gradient by its own size, so that one element whose
    gradient is all rounding takes whole steps of its own.
    """
    start = tiny.build(pins)[0].adapter_state()
    for name, tensor in one.items():
        apart, moved = (tensor - other[name]).norm().item(), (tensor - start[name]).norm().item()
        assert moved > 0 and apart <= 1e-3 * moved, (name, apart / moved)


@pytest.mark.parametrize("objective", ["kd", "ce"])
def test_training_brings_speech_nearer_to_text_and_moves_only_the_adapter(pins, clips, tmp_path, objective):
    before = tiny.build(pins)[0].state_dict()
    model, log, _ = training(pins, clips, tmp_path, SETTINGS.model_copy(update={"objective": objective}))
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == set(model.adapter_state())
    assert log[-1]["loss"] < log[0]["loss"]
    assert [record["step"] for record in log] == [10, 20] and log[0].keys() >= {"dev_kl", "dev_top1", "padding_share"}
    assert log[-1]["lr"] < log[0]["lr"]
    if objective == "kd":
        assert log[-1]["dev_kl"] < log[0]["dev_kl"]


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(pins, clips, tmp_path):
    first, second = (training(pins, clips, tmp_path / name)[0].adapter_state() for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop_at", [0, 3, 4, 13, 19])
def test_a_run_stopped_at_any_step_ends_with_the_same_adapter(pins, clips, tmp_path, stop_at):
    """And no utterance is skipped or seen twice by what counts."""
    settings = SETTINGS.model_copy(update={"batch_size": 1})
    whole, whole_log, whole_seen = training(pins, clips, tmp_path / "whole", settings)
    drawn = []

    def stop(choice):
        drawn.append(choice.row)
        if len(drawn) > stop_at:
            raise Killed

    with pytest.raises(Killed):
        training(pins, clips, tmp_path / "stopped", settings, on_example=stop)
    resumed, log, seen = training(pins, clips, tmp_path / "stopped", settings)
    kept = stop_at // settings.checkpoint_every * settings.checkpoint_every
    assert drawn[:kept] + seen == whole_seen
    assert all(torch.equal(whole.adapter_state()[name], tensor) for name, tensor in resumed.adapter_state().items())
    assert [(r["step"], r["loss"], r.get("dev_kl")) for r in log] == [
        (r["step"], r["loss"], r.get("dev_kl")) for r in whole_log
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_interrupted_is_saved_and_goes_on_from_there(pins, clips, tmp_path, number):
    settings = SETTINGS.model_copy(update={"batch_size": 1, "checkpoint_every": 1000})
    count = []

    def terminate(choice):
        count.append(choice)
        if len(count) == 6:
            os.kill(os.getpid(), number)

    with pytest.raises(BlspError, match="stopped after step 6 of 20; run it again to go on"):
        training(pins, clips, tmp_path, settings, on_example=terminate)
    resumed, _, seen = training(pins, clips, tmp_path, settings)
    assert len(seen) == 14
    whole = training(pins, clips, tmp_path / "whole", settings)[0]
    assert all(torch.equal(whole.adapter_state()[name], tensor) for name, tensor in resumed.adapter_state().items())


def test_micro_batches_make_the_step_of_the_whole_batch(pins, clips, tmp_path):
    """One step on three utterances at once, and one after the other: the same to rounding."""
    settings = SETTINGS.model_copy(update={"steps": 3})
    whole, log, _ = training(pins, clips, tmp_path / "a", settings)
    pieces = training(pins, clips, tmp_path / "b", settings.model_copy(update={"micro_batch_tokens": 1}))
    assert pieces[2] != training(pins, clips, tmp_path / "c", settings)[2][:1]
    assert_same_steps(pins, whole.adapter_state(), pieces[0].adapter_state())
    for key in ("loss", "gradient_norm"):
        assert pieces[1][-1][key] == pytest.approx(log[-1][key], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_before_the_update(pins, clips, tmp_path):
    model, _ = tiny.build(pins)
    with torch.no_grad():
        model.multi_modal_projector.norm.weight[0] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    with pytest.raises(BlspError, match="the loss is nan .*, on the utterances u0, u1, u2"):
        training(pins, clips, tmp_path, model=model)
    assert all(
        torch.equal(before[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in model.adapter_state().items()
    )


def test_a_full_disk_keeps_the_checkpoint_before(pins, clips, tmp_path, monkeypatch):
    from blsp.training import checkpoint

    saved = checkpoint.save_file

    def full(tensors, path):
        if "step-00000008" in str(path):
            raise OSError(28, "No space left on device")
        saved(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(BlspError, match=r"checkpoint of step 8 could not be written .*No space left.*BLSP_SCRATCH"):
        training(pins, clips, tmp_path)
    monkeypatch.undo()
    _, _, seen = training(pins, clips, tmp_path)
    assert len(seen) == 3 * (20 - 4)


def test_a_checkpoint_of_another_versions_adapter_is_said_and_begun_anew(pins, clips, tmp_path, capsys):
    model, log, _ = training(pins, clips, tmp_path / "fresh")
    (checkpoint,) = (tmp_path / "fresh").glob("train/*/step-*")
    tensors = load_file(checkpoint / "adapter.safetensors")
    save_file({f"old.{name}": tensor for name, tensor in tensors.items()}, checkpoint / "adapter.safetensors")
    again, anew, _ = training(pins, clips, tmp_path / "fresh")
    assert "its checkpoint is of another version's adapter; begun anew" in capsys.readouterr().out
    assert_same_steps(pins, model.adapter_state(), again.adapter_state())
    assert [record["step"] for record in anew] == [record["step"] for record in log]


def test_the_rate_warms_up_and_decays_to_zero():
    rates = [rate_at(step, 4, 10) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and rates[-1] == 0
    assert rates[4:] == sorted(rates[4:], reverse=True)
