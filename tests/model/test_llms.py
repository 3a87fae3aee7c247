"""Any causal LLM: what holds for a Llama holds for Qwen3, Mistral and Gemma, with every attention back end."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import FalconH1Config, Gemma4TextConfig, HyperCLOVAXConfig, masking_utils
from transformers.integrations.flex_attention import WrappedFlexAttention

from blsp import backbones
from blsp.errors import BlspError
from blsp.model.chat import AUDIO_TOKEN, build_prompt, respond
from blsp.model.decoding import logits_of
from tests import tiny

FALCON = {"embedding_multiplier": 5.0, "mamba_d_ssm": 32, "mamba_n_heads": 4, "num_key_value_heads": 1}
INSTRUCTIONS = ("Repeat the following text.", "Answer the question.", "Continue the following text.")


@pytest.fixture(scope="module", params=list(tiny.LLMS))
def family(request, tmp_path_factory):
    return request.param, tiny.save_backbones(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def built(family):
    return tiny.build(family[1])


@pytest.fixture
def uncompiled_flex(monkeypatch):
    """flex_attention as written, without the minute of compiling."""
    monkeypatch.setattr(WrappedFlexAttention, "__init__", lambda self, training: None)
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda self: flex_attention)
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda _compile, **given: create_block_mask(**given))


def prompts(processor):
    return [build_prompt(processor.tokenizer, instruction, AUDIO_TOKEN) for instruction in INSTRUCTIONS]


@torch.no_grad()
def logits(model, inputs):
    """The logits of each row's real tokens."""
    output = model(**inputs).logits
    return [row[mask.bool()] for row, mask in zip(output, inputs["attention_mask"], strict=True)]


def agree(some, others):
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_batched_equals_single(built, clips):
    model, processor = built
    texts = prompts(processor)
    together = logits(model, processor(text=texts, audio=clips))
    alone = [logits(model, processor(text=[t], audio=[c]))[0] for t, c in zip(texts, clips, strict=True)]
    agree(together, alone)


def test_padded_left_equals_padded_right(built, clips):
    model, processor = built
    left, right = (processor(text=prompts(processor), audio=clips, padding_side=side) for side in ("left", "right"))
    agree(logits(model, left), logits(model, right))


def test_attention_back_ends_agree_in_both_backbones(family, clips, uncompiled_flex):
    name, pins = family
    model, processor = tiny.build(pins)
    kinds = {"eager": True, "sdpa": model.language_model._supports_sdpa}
    kinds["flex_attention"] = model.language_model._supports_flex_attn
    back_ends = [kind for kind, is_there in kinds.items() if is_there]
    # transformers' own limits: Gemma2 caps its scores, which sdpa cannot; GPT-2 has no flex_attention
    assert len(back_ends) == (2 if name in ("gemma2", "gpt2") else 3)
    inputs = processor(text=prompts(processor), audio=clips)
    found = []
    for back_end in back_ends:
        model.set_attn_implementation(back_end)
        assert model.audio_tower.config._attn_implementation == back_end
        assert model.language_model.config._attn_implementation == back_end
        found.append(logits(model, inputs))
    for other in found[1:]:
        agree(found[0], other)


def test_an_untrained_vector_has_the_size_of_what_the_llm_gets_for_words(family, built, clips):
    model, processor = built
    words = model.get_input_embeddings()(torch.arange(len(processor.tokenizer) - 1))
    vectors = model.get_audio_features(**processor.features(clips)).pooler_output
    assert 0.8 < vectors.std() / words.std() < 1.25
    weights = model.get_input_embeddings().weight
    factor = 24**0.5 if family[0].startswith("gemma") else 1.0
    assert words.std() / weights.std() == pytest.approx(factor, rel=0.05)


def test_speech_vectors_enter_the_llm_as_embeddings_do(built):
    """A vector equal to a word's embedding is that word."""
    model, processor = built
    tokens = processor.tokenizer("turn on the fan", add_special_tokens=False, return_tensors="pt").input_ids
    vectors = model.get_input_embeddings()(tokens)[0]
    spoken = model.embed(torch.full_like(tokens, processor.audio_token_id), vectors)
    torch.testing.assert_close(model(inputs_embeds=spoken).logits, model.language_model(tokens).logits)


@torch.no_grad()
def test_last_states_give_the_logits_of_the_llm_itself(built):
    llm, tokens = built[0].language_model, torch.arange(2, 12)[None]
    states = llm.base_model(inputs_embeds=llm.get_input_embeddings()(tokens), use_cache=False).last_hidden_state
    torch.testing.assert_close(logits_of(llm, states), llm(tokens).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "config_class", "particulars"),
    [
        # Its last states are multiplied where Granite's, by the same name, are divided.
        ("hyperclovax", HyperCLOVAXConfig, {"logits_scaling": 0.125}),
        # Its multiplier is for tokens alone: embeddings are taken as they are.
        ("falcon_h1", FalconH1Config, FALCON),
        # It looks up the words that embeddings are of: speech is of none.
        ("gemma4_text", Gemma4TextConfig, {"head_dim": 16, "num_key_value_heads": 1}),
    ],
)
def test_an_llm_that_cannot_be_given_speech_is_refused(tmp_path, monkeypatch, kind, config_class, particulars):
    monkeypatch.setitem(tiny.LLMS, kind, (config_class, particulars))
    pins = tiny.save_backbones(tmp_path, kind)
    with pytest.raises(BlspError, match=f"{tmp_path}/llm: an LLM of the kind {kind} .* choose another"):
        tiny.build(pins)
    monkeypatch.setattr(backbones, "pins", lambda: pins)
    with pytest.raises(BlspError, match=f"an LLM of the kind {kind}"):
        backbones.load_llm()


def test_answers_are_greedy_and_the_same_alone_and_in_a_batch(built, clips):
    model, processor = built
    together = respond(model, processor, INSTRUCTIONS[0], clips, 6)
    assert together == [respond(model, processor, INSTRUCTIONS[0], [clip], 6)[0] for clip in clips]
    start = processor(text=prompts(processor)[:1], audio=clips[:1])
    written = model.generate(**start, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    inputs = dict(start)
    for _ in range(3):  # without a cache, one token at a time
        scores = model(**inputs, use_cache=False).logits[:, -1:]
        scores[..., model.generation_config.eos_token_id] = -torch.inf
        inputs["input_ids"] = torch.cat([inputs["input_ids"], scores.argmax(-1)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert torch.equal(written, inputs["input_ids"])


def test_several_clips_in_one_conversation(built, clips):
    """Two clips in one prompt are heard as their vectors in a row; beams keep each with its prompt."""
    model, processor = built
    two = build_prompt(processor.tokenizer, INSTRUCTIONS[0], f"{AUDIO_TOKEN} and {AUDIO_TOKEN}")
    one = build_prompt(processor.tokenizer, INSTRUCTIONS[1], AUDIO_TOKEN)
    audio = [clips[0], clips[1], clips[1][::-1].copy()]
    together = processor(text=[two, one], audio=audio)
    agree(
        logits(model, together),
        [
            logits(model, processor(text=[two], audio=audio[:2]))[0],
            logits(model, processor(text=[one], audio=audio[2:]))[0],
        ],
    )
    beams = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    beams |= {"return_dict_in_generate": True, "output_scores": True}
    written = model.generate(**together, **beams)
    vectors = model.get_audio_features(together["input_features"], together["input_features_mask"]).pooler_output
    embeddings = model.embed(together["input_ids"], vectors)
    expected = model.language_model.generate(
        inputs_embeds=embeddings, attention_mask=together["attention_mask"], **beams
    )
    assert torch.equal(written.sequences[:, -5:], expected.sequences)
    # Words may be the same after other speech; how likely they are is not.
    torch.testing.assert_close(written.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-4)
