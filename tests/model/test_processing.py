"""transformers' contract for audio LLMs: names, conversations with audio parts, offsets, and what is refused."""

import numpy as np
import pytest
import torch

from blsp.model.chat import AUDIO_TOKEN, build_prompt
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
