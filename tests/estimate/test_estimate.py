"""The estimate against what a real run on the CPU keeps and allocates, and against arithmetic by hand."""

from copy import deepcopy

import pytest
import torch
from transformers import LlamaConfig, WhisperConfig

from blsp.estimate.estimate import GIB, USABLE_SHARE, Device, estimate, table
from blsp.estimate.lengths import Lengths
from blsp.estimate.rehearsal import Stage
from blsp.model import BlspConfig, BlspForConditionalGeneration, decoding
from blsp.model.responses import Prompted
from blsp.training.examples import Batch
from blsp.training.objective import AlignmentObjective
from blsp.training.switches import recompute
from tests import tiny

WHISPER_SMALL = WhisperConfig(
    d_model=768, encoder_layers=12, encoder_attention_heads=12, encoder_ffn_dim=3072, decoder_layers=1
)
LLAMA_2_7B = LlamaConfig()  # transformers' defaults are its shape
SMALL_WHISPER = WhisperConfig(
    d_model=256,
    encoder_layers=4,
    encoder_attention_heads=4,
    encoder_ffn_dim=1024,
    decoder_layers=1,
    max_source_positions=300,
)
SMALL_LLAMA = LlamaConfig(
    vocab_size=8000, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6
)
LENGTHS = Lengths(audio_s=4.0, prefix_tokens=14, closing_tokens=6, transcript_tokens=15, response_tokens=25)


def train_settings(**changes):
    return tiny.train_settings(**{"downsampling": 8, "bottleneck": 128, **changes})


def real_model(settings):
    """The model with contents, its adapter's gradients there as from the second micro-batch on."""
    dtype = getattr(torch, settings.precision)
    config = BlspConfig(
        audio_config=deepcopy(SMALL_WHISPER),
        text_config=deepcopy(SMALL_LLAMA),
        audio_token_id=1,
        downsampling=settings.downsampling,
        bottleneck=settings.bottleneck,
    )
    model = BlspForConditionalGeneration(config)
    model.language_model.to(dtype)
    model.audio_tower.to(dtype)
    if settings.gradient_checkpointing:
        recompute(model.language_model)
    for parameter in model.multi_modal_projector.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model.train()


def real_batch(model, utterances, lengths):
    """Noise and random tokens of these lengths; the last utterance is a token shorter, so that there is padding."""
    frames = round(lengths.audio_s * 50)
    vectors = -(-frames // model.config.downsampling)

    def prompted(before):
        ids = torch.randint(2, 7999, (utterances, before + lengths.response_tokens))
        predicts = torch.zeros_like(ids, dtype=torch.bool)
        predicts[:, before - 1 : -1] = True
        mask = torch.ones_like(ids)
        mask[-1, -1] = 0
        predicts[-1, -2] = False
        return Prompted(ids, mask, predicts)

    spoken = prompted(lengths.closing_tokens + vectors)
    spoken.ids[:, :vectors] = model.config.audio_token_id
    features = torch.randn(utterances, 80, 2 * frames)
    encoded, counts = model.encode_audio(features, torch.ones(utterances, 2 * frames, dtype=torch.long))
    return Batch(
        ids=[str(row) for row in range(utterances)],
        written=prompted(lengths.closing_tokens + lengths.transcript_tokens),
        spoken=spoken,
        prefix=torch.ones(utterances, dtype=torch.long),
        targets=torch.randint(2, 7999, (utterances * lengths.response_tokens - 1,)),
        utterance=torch.zeros(utterances * lengths.response_tokens - 1, dtype=torch.long),
        kept_ids=None,
        kept_logprobs=None,
        audio={"frames": encoded, "counts": counts},
        audio_s=utterances * lengths.audio_s,
    )


def measure(objective, batch):
    """Bytes that autograd saves, each storage once, parameters and the batch aside; and the allocator's peak."""
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*objective.model.parameters(), *objective.model.buffers())
    }
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            student = objective.spoken_states(batch)
        objective.spoken_states = lambda batch: student
        objective(batch).backward()
    live = peak = 0
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return sum(saved.values()), peak


@pytest.mark.parametrize(
    ("precision", "checkpointing", "chunk_rows", "utterances"),
    # Few in bfloat16, which many CPUs do slowly.
    [("float32", False, 4000, 8), ("float32", True, 4000, 8), ("float32", False, 50, 8), ("bfloat16", False, 4000, 2)],
)
def test_bytes_are_those_of_a_real_run(monkeypatch, precision, checkpointing, chunk_rows, utterances):
    monkeypatch.setattr(decoding, "CHUNK_LOGITS", chunk_rows * SMALL_LLAMA.vocab_size)
    settings = train_settings(precision=precision, gradient_checkpointing=checkpointing)
    estimated = Stage(SMALL_WHISPER, SMALL_LLAMA, settings, LENGTHS).rehearse(utterances)
    model = real_model(settings)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        batch = real_batch(model, utterances, LENGTHS)
        objective = AlignmentObjective(model, "kd", 2.0, prefixes=((), (3,) * LENGTHS.prefix_tokens))
        saved, peak = measure(objective, batch)
    frames = (
        batch.audio["frames"].untyped_storage().nbytes()
    )  # the estimate counts those, the measurement begins after them
    assert estimated.kept_bytes == pytest.approx(saved + frames, rel=0.2)
    assert estimated.peak_bytes == pytest.approx(peak + frames, rel=0.2)


def test_no_teacher_is_counted_where_none_reads_along():
    live, stored, ce = (
        Stage(SMALL_WHISPER, SMALL_LLAMA, train_settings(**changes), LENGTHS).rehearse(2)
        for changes in ({}, {"teacher": "stored"}, {"objective": "ce"})
    )
    # Llama's matrices, twice a position, and attention's two products of L x (L + C): 14 of the 60 are the prefix.
    matrices = 6 * (4 * 384**2 + 3 * 384 * 1024)
    assert live.flops["teacher"] == 2 * (2 * matrices * 46 + 6 * 4 * 46 * 60 * 384)
    assert stored.flops["teacher"] == ce.flops["teacher"] == 0
    assert stored.kept_bytes == ce.kept_bytes == live.kept_bytes


def test_work_is_that_of_a_frozen_llm():
    """A forward pass, and a backward pass to the inputs alone: not twice as much, as a trained one takes."""
    plain, again = (
        Stage(SMALL_WHISPER, SMALL_LLAMA, train_settings(gradient_checkpointing=is_on), LENGTHS).rehearse(1).flops
        for is_on in (False, True)
    )
    positions = 6 + 25 + 25
    forward = 2 * 6 * (4 * 384**2 + 3 * 384 * 1024) * positions + 6 * 4 * positions * (positions + 14) * 384
    # Three convolutions of kernel 5 that halve 200 frames, and the bottleneck.
    adapter = 2 * 5 * (256 * 512 * (100 + 50) + 256 * 768 * 25) + 2 * 2 * 384 * 128 * 25
    assert plain["student"] == forward + adapter
    assert plain["backward"] == pytest.approx(forward + 2 * adapter, rel=0.05)
    unneeded = 2 * 6 * 384 * 1024 * positions  # each layer's last product: its output is the next layer's kept input
    assert again["backward"] - plain["backward"] == forward - unneeded


def test_parameters_and_weights_of_the_papers_models():
    settings = train_settings(precision="bfloat16", bottleneck=512)
    stage = Stage(WHISPER_SMALL, LLAMA_2_7B, settings, LENGTHS)
    found = {name: sum(p.numel() for p in part.parameters()) for name, part in stage.model.named_children()}
    assert found == {"audio_tower": 88_154_112, "multi_modal_projector": 47_467_520, "language_model": 6_738_415_616}
    assert {p.dtype for p in stage.model.language_model.parameters()} == {torch.bfloat16}


def test_the_largest_budget_fits_and_a_larger_does_not():
    settings, device = train_settings(batch_size=64), Device(1.0, 2.0, 4.0)
    llama = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4)
    found = estimate(SMALL_WHISPER, llama, settings, LENGTHS, device, utilisation=0.5)
    stage = Stage(SMALL_WHISPER, llama, settings, LENGTHS)
    room = USABLE_SHARE * GIB - sum(found.resident_bytes.values())
    assert stage.rehearse(found.largest_utterances).peak_bytes <= room
    assert stage.rehearse(int(1.05 * found.largest_utterances)).peak_bytes > room
    assert found.largest_budget == pytest.approx(found.largest_utterances * found.positions_per_utterance, abs=1)
    assert found.hours == pytest.approx(settings.steps * found.flops_per_step / (2e12 * 0.5) / 3600)
    two = estimate(SMALL_WHISPER, llama, settings, LENGTHS, device, devices=2, utilisation=0.5)
    assert two.utterances == found.utterances // 2
    assert two.hours == pytest.approx(settings.steps * two.flops_per_step / (2 * 2e12 * 0.5) / 3600)
    assert two.resident_bytes == found.resident_bytes
    small = estimate(SMALL_WHISPER, llama, settings, LENGTHS, Device(0.1, 2.0, 4.0))
    assert small.largest_utterances == small.largest_budget == 0
    assert "not one utterance fits" in table(small, settings, Device(0.1, 2.0, 4.0), None)


def test_a_sharded_llm_leaves_each_device_its_piece_and_two_layers_at_work():
    whole, sharded = (
        estimate(
            SMALL_WHISPER, SMALL_LLAMA, train_settings(shard_llm=is_on), LENGTHS, Device(80, 1, 1), 4
        ).resident_bytes
        for is_on in (False, True)
    )
    layer = 4 * (4 * 384**2 + 3 * 384 * 1024 + 2 * 384)
    assert sharded["LLM layers at work"] == 2 * layer
    assert sharded["LLM weights"] == whole["LLM weights"] - 6 * layer * 3 // 4
