"""The estimate against what a real run on the CPU keeps and allocates, and against arithmetic by hand."""

from contextlib import nullcontext

import pytest
import torch
from transformers import LlamaConfig, WhisperConfig

from blsp.model import BlspConfig, BlspForConditionalGeneration
from blsp.params import load_params
from blsp.training.examples import Batch, Prompted
from blsp.training.objective import AlignmentObjective
from blsp.training.rehearsal import Lengths, Rehearsal, Stage
from tests.trained import PARAMS

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
LENGTHS = Lengths(audio_s=4.0, prompt_tokens=20, transcript_tokens=15, response_tokens=25)


def train_settings(**changes):
    train = load_params(PARAMS).train
    return train.model_copy(update={"downsampling": 8, "bottleneck": 128, **changes})


def real_batch(model, utterances, lengths, downsampling):
    """Noise and random tokens of these lengths; the last utterance is a token shorter, so that there is padding."""
    frames = round(lengths.audio_s * 50)
    vectors = -(-frames // downsampling)

    def prompted(before):
        ids = torch.randint(2, 7999, (utterances, before + lengths.response_tokens))
        predicts = torch.zeros_like(ids, dtype=torch.bool)
        predicts[:, before - 1 : -1] = True
        mask = torch.ones_like(ids)
        mask[-1, -1] = 0
        predicts[-1, -2] = False
        return Prompted(ids, mask, predicts)

    spoken = prompted(lengths.prompt_tokens + vectors)
    spoken.ids[:, :vectors] = model.config.audio_token_id
    features = torch.randn(utterances, 80, 2 * frames)
    encoded, counts = model.encode_audio(features, torch.ones(utterances, 2 * frames, dtype=torch.long))
    return Batch(
        ids=[str(row) for row in range(utterances)],
        written=prompted(lengths.prompt_tokens + lengths.transcript_tokens),
        spoken=spoken,
        targets=torch.randint(2, 7999, (utterances * lengths.response_tokens - 1,)),
        utterance=torch.zeros(utterances * lengths.response_tokens - 1, dtype=torch.long),
        top_ids=None,
        top_logprobs=None,
        frames=encoded,
        frame_counts=counts,
        audio_s=utterances * lengths.audio_s,
        real=0,
        padded=0,
    )


def measure(objective, batch):
    """Bytes that autograd saves, each storage once, parameters and the batch aside; and the allocator's peak."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*objective.parameters(), *objective.buffers())}
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


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_are_those_of_a_real_run(checkpointing):
    settings = train_settings(gradient_checkpointing=checkpointing)
    estimated = Stage(SMALL_WHISPER, SMALL_LLAMA, settings, LENGTHS).rehearse(8)
    config = BlspConfig(
        audio_config=WhisperConfig(**SMALL_WHISPER.to_dict()),
        text_config=LlamaConfig(**SMALL_LLAMA.to_dict()),
        audio_token_id=1,
        downsampling=8,
        bottleneck=128,
    )
    model = BlspForConditionalGeneration(config)
    if checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for parameter in model.multi_modal_projector.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = real_batch(model, 8, LENGTHS, 8)
    frames = batch.frames.numel() * 4
    saved, peak = measure(AlignmentObjective(model, "kd", 2.0), batch)
    print(checkpointing, "kept", estimated.kept_bytes, saved + frames, "peak", estimated.peak_bytes, peak + frames, estimated)
    assert estimated.kept_bytes == pytest.approx(saved + frames, rel=0.2)
    assert estimated.peak_bytes == pytest.approx(peak + frames, rel=0.2)
