"""An exported model as vLLM's Transformers backend would run it: vLLM's calls, one by one, without vLLM.

Written from the source of vLLM 0.33.0, vllm/model_executor/models/transformers: base.py (how the model is made, how
weights are named, how it is called), causal.py (head and logits), multimodal.py (the processor's and encoder's calls),
utils.py (embeddings). The stand-ins here do what those files say; vLLM itself was not run.
"""

import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
from transformers.conversion_mapping import WeightRenaming, get_model_conversion_mapping

from blsp.errors import BlspError
from blsp.model import BlspModel
from blsp.model.chat import AUDIO_TOKEN, build_prompt
from blsp.model.export import export
from tests import tiny


class VocabParallelEmbedding(nn.Embedding):
    """Stands for vLLM's, which is an nn.Embedding of its own making."""


def attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):
    """Stands for vLLM's attention: causal, in a window where the layer has one, deaf to any mask, flat (L, heads * D).

    GPT-2's layers cannot read it so, neither here nor in vLLM.
    """
    ago = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
    seen = (ago >= 0) & (ago < (sliding_window or len(ago)))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return output.transpose(1, 2).flatten(2)[0], None


@pytest.fixture(scope="module", autouse=True)
def registered():
    """As the package of the backend registers its attention when it is imported."""
    AttentionInterface.register("vllm", attention)
    yield
    del AttentionInterface._global_mapping["vllm"]


@pytest.fixture(scope="module", params=["llama", "qwen3", "granite", "cohere", "gemma3"])
def exported(request, tmp_path_factory):
    """A model, its processor, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = tiny.build(tiny.save_backbones(folder / "backbones", request.param))
    model.save_pretrained(folder / "adapter")
    export(folder / "adapter", folder / "exported")
    return model, processor, folder / "exported"


def weight_name(model, name):
    """Base._create_hf_to_vllm_mapper: where vLLM, whose `model` is this one, puts the tensor `name` of the folder."""
    for mapping in get_model_conversion_mapping(model):
        if isinstance(mapping, WeightRenaming):
            name, _ = mapping.rename_source_key(name)
    children = "|".join(child for child, _ in model.named_children())
    for pattern, replacement in (
        (rf"^(?!model\.)(({children}).*)", r"model.\1"),
        (rf"^(model\.)((?!{children}).+)", r"\2"),
        (r"^model\.(.+\.)*(lm_head.+)", r"\2"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def make(folder):
    """Base.__init__: the model without a head, made of the configuration alone."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.get_text_config()._attn_implementation = "vllm"
    config.dtype = torch.get_default_dtype()
    kwargs = {"config": config, "dtype": torch.float32, "trust_remote_code": False}
    with torch.device("meta"):
        assert AutoModel.from_config(**kwargs).get_decoder().config is config.text_config
    with init_empty_weights(include_buffers=False):
        model = AutoModel.from_config(**kwargs)
    embeddings = model.get_input_embeddings()
    if type(embeddings) is nn.Embedding:
        model.set_input_embeddings(VocabParallelEmbedding(*embeddings.weight.shape, device="meta"))
    else:
        kind = type(embeddings)
        embeddings.__class__ = type(kind.__name__, (kind, VocabParallelEmbedding), {})
    return model


def load(model, folder):
    """Base.init_parameters and load_weights: the head's weight, once every parameter has come from the folder."""
    tensors = {weight_name(model, name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    is_tied = model.config.text_config.tie_word_embeddings
    embedding = next(
        f"model.{name}" for name, p in model.named_parameters() if p is model.get_input_embeddings().weight
    )
    head = tensors[embedding] if is_tied else tensors.pop("lm_head.weight")
    assert tensors.keys() == {f"model.{name}" for name, _ in model.named_parameters()}
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, assign=True)
    return head


def processed(folder, clips):
    """MultiModalProcessor._apply_hf_processor_main: each clip's features and mask, and its ids in the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    options = {"truncation": False}
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, tokenizer=tokenizer, **options)
    options |= {"return_text_replacement_offsets": True, "return_tensors": "pt"}
    together = processor(text=" ".join([processor.audio_token] * len(clips)), audio=clips, **options)
    alone = [processor(text=processor.audio_token, audio=[clip], **options) for clip in clips]
    items = [(inputs["input_features"][0], inputs["input_features_mask"][0]) for inputs in alone]
    replacements = [entry["replacement"] for entry in together["text_replacement_offsets"][0]]
    return tokenizer, items, [tokenizer.encode(text, add_special_tokens=False) for text in replacements]


@torch.no_grad()
def test_served_without_its_head_it_says_what_the_model_says(exported, clips):
    own, own_processor, folder = exported
    clip = f"{AUDIO_TOKEN} and "
    prompt = build_prompt(own_processor.tokenizer, "Repeat ", f"{clip}{clip}{AUDIO_TOKEN}")
    expected = own(**own_processor(text=[prompt], audio=clips)).logits[0]

    model = make(folder)
    head = load(model, folder)
    assert isinstance(model, BlspModel) and model.get_encoder(modality="audio") is model.audio_tower
    assert model.audio_tower.config._attn_implementation != "vllm"
    tokenizer, items, replacements = processed(folder, clips)
    speech = [
        model.get_audio_features(features.unsqueeze(0), return_dict=True, input_features_mask=[mask]).pooler_output
        for features, mask in items
    ]
    assert [len(vectors) for vectors in speech] == [len(ids) for ids in replacements]

    (placeholder,) = tokenizer.encode(AUDIO_TOKEN, add_special_tokens=False)
    waiting = iter(replacements)
    ids = [
        each
        for token in tokenizer.encode(prompt, add_special_tokens=False)
        for each in (next(waiting) if token == placeholder else [token])
    ]
    input_ids = torch.tensor(ids)
    embeddings = model.language_model.get_input_embeddings()(input_ids)
    embeddings[input_ids == placeholder] = torch.cat(speech)
    states = model(
        input_ids=None,
        inputs_embeds=embeddings[None],
        use_cache=False,
        position_ids=torch.arange(len(ids))[None],
        return_dict=False,
    )[0][0]
    text_config = model.config.get_text_config()
    logits = states @ head.T * getattr(text_config, "logit_scale", 1.0)
    # vLLM knows no logits_scaling: Granite's logits come out that much larger
    logits = logits / getattr(text_config, "logits_scaling", 1.0)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_clips_of_one_length_are_encoded_as_one_tensor(exported, clips):
    own, _, folder = exported
    model = make(folder)
    load(model, folder)
    clips = [clips[1], clips[1][::-1].copy()]
    _, items, replacements = processed(folder, clips)
    features, masks = map(torch.stack, zip(*items, strict=True))
    output = model.get_audio_features(features, return_dict=True, input_features_mask=masks).pooler_output
    assert len(output) == sum(len(ids) for ids in replacements)
    torch.testing.assert_close(output, own.get_audio_features(features, masks).pooler_output)


@pytest.mark.parametrize("exported", ["llama", "gpt2", "gemma3"], indirect=True)
def test_from_pretrained_gives_the_same_model(exported):
    own, _, folder = exported
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, BlspModel) and not report["missing_keys"]
    assert {*report["unexpected_keys"]} <= {"language_model.lm_head.weight"}
    expected = {**own.audio_tower.state_dict(prefix="audio_tower."), **own.adapter_state()}
    expected |= own.language_model.base_model.state_dict(prefix="language_model.")
    found = model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_an_adapter_is_not_served(tiny_model, tmp_path):
    tiny_model[0].save_pretrained(tmp_path)
    with pytest.raises(BlspError, match="an adapter's, without its backbones' weights; `blsp export`"):
        AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))


def test_the_plug_in_is_a_function_that_may_be_called_again():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for name in project["entry-points"]["vllm.general_plugins"].values():
        pkgutil.resolve_name(name)()
