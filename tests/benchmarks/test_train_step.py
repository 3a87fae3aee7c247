"""The training benchmark on models of width 32: both recipes compute the same thing, and the work is counted right."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, WhisperConfig

from benchmarks import train_step
from benchmarks.recipes import PREFIXES, encoded, our_batch, our_micro_batches, our_step, published_loss, published_step
from benchmarks.work import encoder_parameters, llm_parameters, our_work, published_work, teacher_work
from benchmarks.workload import Shape, large, librispeech_like, new_model, small, utterance
from blsp.training.objective import AlignmentObjective

VOCABULARY = 64
CPU = torch.device("cpu")


def shape(dtype=torch.float32):
    return Shape(
        WhisperConfig(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64),
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.2,
        ),
        dtype,
    )


@pytest.fixture(scope="module")
def model():
    return new_model(shape(), CPU)


def spoken(*seconds, tokens=None):
    rng = np.random.default_rng(4)
    return [utterance(s, rng, VOCABULARY, tokens) for s in seconds]


def loss_and_gradient(model, loss):
    model.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.multi_modal_projector.parameters()])
    return loss.item(), gradient


@pytest.mark.parametrize("seconds", [(4.01,), (30.0,), (7.5, 7.5, 7.5)])
def test_both_recipes_have_the_same_loss_and_gradient(model, monkeypatch, seconds):
    """Where clips are equally long: else the published recipe's positions and adapter see other clips' padding."""
    monkeypatch.setattr(model.config, "encoding", "padded")
    clips = spoken(*seconds)
    published = loss_and_gradient(model, published_loss(model, clips))
    batch = our_batch(model, clips)
    ours = loss_and_gradient(model, AlignmentObjective(model, "ce", prefixes=PREFIXES)(batch) / len(batch.targets))
    assert published[0] == pytest.approx(ours[0], rel=1e-5)
    torch.testing.assert_close(published[1], ours[1], rtol=1e-3, atol=1e-5)
    assert ours[1].norm() > 1e-3


def test_the_published_recipe_pads_each_part_for_itself(model, monkeypatch):
    seen = {}

    def watch(module, args, kwargs):
        seen.update(kwargs)

    handle = model.language_model.register_forward_pre_hook(watch, with_kwargs=True)
    clips = [*spoken(2.0, tokens=20), *spoken(8.0, tokens=5)]
    published_loss(model, clips)
    handle.remove()
    # 22 of the prefix; 13 and 50 speech vectors; 8 of the closing with 20 and 5 of the response
    assert seen["attention_mask"].shape == (2, 22 + 50 + 28)
    assert seen["attention_mask"][0].tolist() == [1] * 35 + [0] * 37 + [1] * 28
    assert seen["attention_mask"][1].tolist() == [1] * 85 + [0] * 15
    assert (seen["labels"] != -100).sum(1).tolist() == [20, 5]
    assert seen["labels"][0, 80:].tolist() == clips[0].response


def counted(run):
    """FLOPs of matrix products, with attention as plain products, so that none escapes torch's counter."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def test_work_is_what_torch_counts(model):
    config, clips = model.config, spoken(3.0, 6.0, 9.0)
    # torch counts all of attention's square. What is masked of it is as much as counts where nothing was read before.
    alone = [replace(clip, prefix=[]) for clip in clips]
    published, work, teacher = (
        published_work(config, clips),
        our_work(config, clips, padded=True),
        teacher_work(config, clips),
    )
    masked, masked_of_teacher = our_work(config, alone, padded=True).attention, teacher_work(config, alone).attention
    ours = AlignmentObjective(model, "ce", prefixes=PREFIXES)
    kd = AlignmentObjective(model, "kd", 2.0, "live", prefixes=PREFIXES)
    kept = [clip.clone() for clip in encoded(model, clips)]
    for step, expected in (
        (lambda: published_step(model, clips), published.total + published.attention),
        (lambda: our_step(ours, our_batch(model, clips)), work.total + masked),
        (lambda: our_step(ours, our_batch(model, clips, kept)), work.total + masked - work.encoder),
        (lambda: our_step(kd, our_batch(model, clips)), work.total + masked + teacher.total + masked_of_teacher),
    ):
        assert counted(step) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("make", [small, large])
def test_parameters_are_those_of_the_matrices(make):
    with torch.device("meta"):
        model = new_model(make(), torch.device("meta"))
    layers = model.language_model.base_model.layers
    assert llm_parameters(model.config) == sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    matrices = sum(p.numel() for p in model.audio_tower.parameters() if p.ndim >= 2)
    assert encoder_parameters(model.config) == matrices - model.audio_tower.embed_positions.weight.numel()
    assert {p.dtype for p in model.multi_modal_projector.parameters()} == {torch.float32}


def test_models_keep_their_attention():
    """A second configuration of the shape must not reach into the model of the first."""
    of_both = shape()
    model = new_model(of_both, CPU)
    of_both.config()
    parts = (model.audio_tower, model.language_model)
    assert [part.config._attn_implementation for part in parts] == ["sdpa", "sdpa"]


def test_micro_batches_hold_every_utterance_once():
    utterances = librispeech_like(20, vocabulary=VOCABULARY)
    micros = our_micro_batches((1, 10), 8, utterances, 600)
    assert sorted(id(u) for micro in micros for u in micro) == sorted(map(id, utterances))
    assert len(micros) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_measurement_runs(dtype, monkeypatch):
    monkeypatch.setattr(train_step, "AUDIO_LENGTHS_S", (1, 2, 3))
    monkeypatch.setattr(train_step, "MATRIX_SIZES", {"cpu": (32,)})
    model = new_model(shape(dtype), CPU)
    utterances = spoken(1.3, 2.2, 31.0, 4.0)
    figures = {
        "arithmetic": train_step.arithmetic(model.config, utterances, 2),
        "against_published": train_step.against_published(model, utterances, 2, rounds=1),
        "teachers": train_step.teachers(model, utterances[:2], rounds=1),
        "linearity": train_step.linearity(model, 1, rounds=1),
    }
    assert all(math.isfinite(value) and value >= 0 for part in figures.values() for value in part.values())
    assert {"ratio", "from_cache_ratio_not_for_the_bar", "ours_share_of_peak"} <= figures["against_published"].keys()
    assert {"kd_live_over_ce", "kd_stored_over_ce"} <= figures["teachers"].keys()
    assert "worst_share_off_the_line" in figures["linearity"]
    assert figures["arithmetic"]["published_over_ours"] > 1
