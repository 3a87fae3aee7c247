"""transformers' contract for audio LLMs: names, conversations with audio parts, offsets, and what is refused."""

import base64
import io

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer, processing_utils

from blsp.errors import BlspError
from blsp.model.chat import AUDIO_TOKEN, build_prompt, respond
from blsp.model.export import export
from blsp.model.processing import BlspProcessor
from tests import tiny


def conversation(*parts):
    return [{"role": "user", "content": list(parts)}]


def test_a_conversation_with_audio_parts_is_the_prompt_with_the_placeholder(tiny_model, clips):
    _, processor = tiny_model
    parts = ({"type": "text", "text": "Repeat the following text."}, {"type": "audio", "audio": clips[0]})
    prompt = processor.apply_chat_template(conversation(*parts), tokenize=False, add_generation_prompt=True)
    assert prompt == build_prompt(processor.tokenizer, "Repeat the following text.", AUDIO_TOKEN)
    inputs = processor.apply_chat_template(
        conversation(*parts), tokenize=True, return_dict=True, add_generation_prompt=True
    )
    expected = processor(text=[prompt], audio=[clips[0]])
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_text_conversations_are_the_llms_own(tiny_model):
    _, processor = tiny_model
    messages = [
        {"role": "user", "content": "Repeat the following text. Turn on the fan."},
        {"role": "assistant", "content": "Turn on the fan."},
        {"role": "user", "content": "Name the intent of the following text."},
    ]
    for generation in (True, False):
        ours, own = (
            each.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
            for each in (processor, processor.tokenizer)
        )
        assert ours == own


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_each_placeholder_becomes_one_token_a_vector(pins, clips, downsampling):
    model, processor = tiny.build(pins, downsampling=downsampling)
    inputs = processor(text=[f"{AUDIO_TOKEN} and {AUDIO_TOKEN}", AUDIO_TOKEN], audio=clips)
    counts = [processor.audio_token_count(len(clip)) for clip in clips]
    placeholders = (inputs["input_ids"] == processor.audio_token_id).sum(-1).tolist()
    assert placeholders == [counts[0] + counts[1], counts[2]]
    vectors = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    assert len(vectors) == sum(counts)


def test_what_a_server_asks_for_by_name(tiny_model, clips):
    """What vLLM's transformers back end reads, and how it calls: one row a clip, offsets of each placeholder."""
    model, processor = tiny_model
    assert model._supports_attention_backend and model.get_encoder(modality="audio") is model.audio_tower
    assert model.config.audio_config.max_source_positions == 100
    assert processor.audio_token == AUDIO_TOKEN and processor.audio_token_ids == [model.config.audio_token_id]
    assert processor.feature_extractor.sampling_rate == 16_000
    inputs = processor(
        text=f"{AUDIO_TOKEN} {AUDIO_TOKEN} {AUDIO_TOKEN}",
        audio=clips,
        return_text_replacement_offsets=True,
        return_mm_token_type_ids=True,
    )
    assert {"input_features", "input_features_mask"} <= {*processor.model_input_names}
    assert all(len(inputs[name]) == len(clips) for name in ("input_features", "input_features_mask"))
    counts = [processor.audio_token_count(len(clip)) for clip in clips]
    offsets = inputs["text_replacement_offsets"][0]
    assert [entry["replacement"] for entry in offsets] == [AUDIO_TOKEN * count for count in counts]
    assert int((torch.as_tensor(inputs["mm_token_type_ids"]) == 3).sum()) == sum(counts)
    output = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"], return_dict=True)
    assert output.pooler_output.shape == (sum(counts), 24)


def test_the_template_is_not_wrapped_twice(tiny_model, clips, tmp_path):
    model, processor = tiny_model
    model.save_pretrained(tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "exported")
    again = BlspProcessor.from_pretrained(tmp_path / "exported")
    assert again.chat_template == processor.chat_template
    parts = ({"type": "audio", "audio": clips[0]}, {"type": "text", "text": "!"})
    prompts = [each.apply_chat_template(conversation(*parts), tokenize=False) for each in (processor, again)]
    assert prompts[0] == prompts[1] and prompts[0].count(AUDIO_TOKEN) == 1


def test_audio_at_another_rate_is_refused(tiny_model, clips):
    with pytest.raises(ValueError, match="audio of 8000 Hz, but the speech model hears 16000 Hz"):
        tiny_model[1](text=AUDIO_TOKEN, audio=clips[:1], sampling_rate=8000)


def test_placeholders_and_clips_must_match(tiny_model, clips):
    model, processor = tiny_model
    with pytest.raises(ValueError, match="1 placeholders .* in the text, 2 audio clips"):
        processor(text=[AUDIO_TOKEN], audio=clips[:2])
    with pytest.raises(ValueError, match="1 placeholders .* in the text, 0 audio clips"):
        processor(text=[AUDIO_TOKEN])
    with pytest.raises(ValueError, match="audio tokens, the clips give"):
        model.embed(torch.tensor([[processor.audio_token_id]]), torch.zeros(2, 24))
    with pytest.raises(ValueError, match="mono samples"):
        processor(text=[AUDIO_TOKEN], audio=[np.zeros((2, 100), dtype=np.float32)])


@pytest.fixture(scope="module")
def spoken(clips, tmp_path_factory):
    """A clip as 16-bit samples and as a message's part: transformers' own form, and OpenAI's two."""
    samples, file = (clips[0] * 32767).astype(np.int16), io.BytesIO()
    soundfile.write(file, samples, tiny.SECOND, format="WAV", subtype="PCM_16")
    path = tmp_path_factory.mktemp("spoken") / "clip.wav"
    path.write_bytes(file.getvalue())
    encoded = base64.b64encode(file.getvalue()).decode()
    return samples, {
        "array": {"type": "audio", "audio": samples / 32768},
        "file": {"type": "audio", "url": str(path)},
        "input_audio": {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
        "audio_url": {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{encoded}"}},
        "audio_url as text": {"type": "audio_url", "audio_url": str(path)},
    }


@pytest.fixture
def without_soxr(monkeypatch):
    """transformers' reader of audio without the library that would change its rate."""

    def load(audio, **_):
        if isinstance(audio, str):
            encoded = audio.removeprefix("data:audio/wav;base64,")
            audio, _ = soundfile.read(audio if audio.endswith(".wav") else io.BytesIO(base64.b64decode(encoded)))
        return audio

    monkeypatch.setattr(processing_utils, "load_audio", load)


@pytest.mark.parametrize("form", ["array", "file", "input_audio", "audio_url", "audio_url as text"])
def test_audio_parts_of_every_form_are_heard_alike(tiny_model, spoken, without_soxr, form):
    _, processor = tiny_model
    samples, parts = spoken
    messages = conversation({"type": "text", "text": "Repeat the following text."}, parts[form])
    prompt = build_prompt(processor.tokenizer, "Repeat the following text.", AUDIO_TOKEN)
    assert processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    expected = processor(text=[prompt], audio=[samples])
    assert inputs.keys() == expected.keys()
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    torch.testing.assert_close(inputs["input_features"], expected["input_features"], atol=1e-6, rtol=0)


def test_a_server_writes_the_same_prompt_for_audio_parts_of_every_form(tiny_model, spoken, tmp_path):
    """Servers ask the saved tokenizer alone, and give it parts as they were sent."""
    _, processor = tiny_model
    processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = build_prompt(processor.tokenizer, "Repeat.", AUDIO_TOKEN)
    for part in spoken[1].values():
        messages = conversation({"type": "text", "text": "Repeat."}, part)
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected


def test_a_saved_processor_comes_back_without_its_model(pins, clips, tmp_path):
    processor = BlspProcessor.from_backbones(pins, 2, "padded")
    processor.save_pretrained(tmp_path)
    again = BlspProcessor.from_pretrained(tmp_path)
    assert (again.downsampling, again.encoding) == (2, "padded") and again.chat_template == processor.chat_template
    inputs, its_inputs = (each(text=[AUDIO_TOKEN], audio=clips[:1]) for each in (processor, again))
    assert all(torch.equal(its_inputs[name], inputs[name]) for name in inputs)


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_whole_numbers_are_scaled_to_full_scale(tiny_model, clips, kind):
    model, processor = tiny_model
    whole = (clips[0] * np.iinfo(kind).max).astype(kind)
    floats = (whole / -float(np.iinfo(kind).min)).astype(np.float32)
    assert 0.1 < np.abs(floats).max() <= 1  # else nothing is tried
    features, expected = (processor.features([each])["input_features"] for each in (whole, floats))
    assert torch.equal(features, expected)
    assert respond(model, processor, "Repeat.", [whole], 6) == respond(model, processor, "Repeat.", [floats], 6)
    assert torch.equal(processor(text=[AUDIO_TOKEN], audio=[whole])["input_features"], expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({3: np.nan}, "audio 1: 1 samples are NaN or infinite; decode it again"),
        ({3: np.inf, 7: -np.inf}, "audio 1: 2 samples are NaN or infinite"),
        ({3: 20_000.0}, "audio 1: samples reach 20000, but full scale is 1; divide 16-bit samples by 32768"),
    ],
)
def test_samples_that_are_no_sound_are_refused_everywhere(tiny_model, clips, change, said):
    model, processor = tiny_model
    spoilt = clips[1].copy()
    for place, value in change.items():
        spoilt[place] = value
    audio = [clips[0], spoilt]
    for ask in (
        lambda: processor.features(audio),
        lambda: processor(text=[AUDIO_TOKEN, AUDIO_TOKEN], audio=audio),
        lambda: respond(model, processor, "Repeat.", audio, 4),
    ):
        with pytest.raises(BlspError, match=said):
            ask()


def test_no_clips_and_clips_without_samples_are_refused(tiny_model):
    model, processor = tiny_model
    for audio, said in (
        ([], "no audio: at least one clip is needed"),
        ([[]], r"audio 0: expected mono samples \(N,\), found shape \(0,\)"),
        ([np.zeros(100, dtype=np.uint8)], "audio 0: samples are uint8; expected floats, int16 or int32"),
    ):
        with pytest.raises(BlspError, match=said):
            processor.features(audio)
        with pytest.raises(BlspError, match=said):
            respond(model, processor, "Repeat.", audio, 4)
