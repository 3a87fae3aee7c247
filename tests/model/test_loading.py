"""Saved, loaded, exported: what is written, what comes back, and what is refused."""

import json
import shutil
import socket

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
    ViTConfig,
    WhisperForConditionalGeneration,
)

from blsp import backbones
from blsp.cli import main
from blsp.continuation.answers import Asker
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.model import BlspConfig, BlspForConditionalGeneration, BlspProcessor
from blsp.model.chat import AUDIO_TOKEN, build_prompt, respond
from blsp.model.export import export
from blsp.model.loading import load_language_model
from blsp.training.switches import set_switches
from tests import tiny

INSTRUCTION = "Repeat the following text."
COMMIT, LATER_COMMIT = "a" * 40, "b" * 40


def speech_inputs(processor, clips):
    return processor(text=[build_prompt(processor.tokenizer, INSTRUCTION, AUDIO_TOKEN)] * len(clips), audio=clips)


def test_saved_is_the_adapter_alone_and_it_comes_back(tiny_model, clips, tmp_path):
    model, processor = tiny_model
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == model.adapter_state().keys()
    again = BlspForConditionalGeneration.from_pretrained(tmp_path)
    prompt = build_prompt(processor.tokenizer, "Repeat the following text.", AUDIO_TOKEN)
    inputs = processor(text=[prompt], audio=clips[:1])
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), BlspConfig)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), BlspProcessor)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_an_adapter_with_other_tensors_is_refused(tiny_model, tmp_path, fault):
    tiny_model[0].save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "multi_modal_projector.extra" if fault == "extra" else "multi_modal_projector.norm.weight"
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(25)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BlspError, match=f"model.safetensors: tensors missing, unknown or of another shape: {name};"):
        BlspForConditionalGeneration.from_pretrained(tmp_path)


def test_an_adapter_that_is_not_there_is_refused(tiny_model, tmp_path):
    tiny_model[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BlspError, match="model.safetensors: no adapter there; `blsp train` writes one"):
        BlspForConditionalGeneration.from_pretrained(tmp_path)


def test_the_auto_class_loads_an_adapter_too_and_options_are_not_lost(tiny_model, tmp_path):
    tiny_model[0].save_pretrained(tmp_path)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path, dtype="bfloat16")
    assert isinstance(loaded, BlspForConditionalGeneration)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    with pytest.raises(TypeError, match="dtype, device_map, attn_implementation alone; found low_memory"):
        BlspForConditionalGeneration.from_pretrained(tmp_path, low_memory=True)


def test_a_changed_backbone_is_refused(tmp_path):
    pins = tiny.save_backbones(tmp_path / "backbones")
    tiny.build(pins)[0].save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "backbones/llm/model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(BlspError, match="trained with the llm backbone .* bring the pinned backbone back"):
        BlspForConditionalGeneration.from_pretrained(tmp_path / "adapter")


def test_an_adapter_whose_backbones_are_not_the_pinned_ones_is_refused(tiny_model, tmp_path):
    tiny_model[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbones"]["llm"]["sha256"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BlspError, match="trained with the llm backbone .* of SHA-256 000000000000"):
        BlspForConditionalGeneration.from_pretrained(tmp_path)
    config["backbones"]["llm"]["name"] = "no/such/folder"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BlspError, match="is not at no/such/folder; run `blsp backbones`"):
        BlspForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["conv", "stack"])
def test_the_settings_come_back_with_the_adapter(pins, clips, tmp_path, kind):
    model, processor = tiny.build(pins, downsampling=8, encoding="padded", adapter=kind)
    model.save_pretrained(tmp_path)
    again, its_processor = (cls.from_pretrained(tmp_path) for cls in (BlspForConditionalGeneration, BlspProcessor))
    assert (again.config.adapter, again.config.downsampling, again.config.encoding) == (kind, 8, "padded")
    inputs, its_inputs = speech_inputs(processor, clips), speech_inputs(its_processor, clips)
    assert torch.equal(again(**its_inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "device_map",
    ["cpu", "auto", {"": "cpu"}, dict.fromkeys(("audio_tower", "multi_modal_projector", "language_model"), "cpu")],
)
def test_dtype_device_map_and_attention_reach_every_part(tiny_model, clips, tmp_path, device_map):
    model, processor = tiny_model
    model.save_pretrained(tmp_path)
    loaded = BlspForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.bfloat16, device_map=device_map, attn_implementation="eager"
    )
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    for part in (loaded.audio_tower, loaded.language_model):
        assert part.config._attn_implementation == "eager"
    inputs = speech_inputs(processor, clips)
    is_real = inputs["attention_mask"].bool()
    low, full = (each(**inputs).logits[is_real].float().flatten() for each in (loaded, model))
    assert torch.corrcoef(torch.stack([low, full]))[0, 1] > 0.95


@pytest.mark.parametrize("llm", ["llama", "gemma3"])
def test_an_exported_model_needs_nothing_else(clips, tmp_path, llm):
    pins = tiny.save_backbones(tmp_path / "backbones", llm)
    model, processor = tiny.build(pins, encoding="padded")
    model.save_pretrained(tmp_path / "adapter")
    inputs = speech_inputs(processor, clips)
    expected, written = model(**inputs).logits, model.generate(**inputs, max_new_tokens=6, do_sample=False)
    export(tmp_path / "adapter", tmp_path / "exported", max_shard_size="20KB")
    for folder in ("adapter", "backbones"):
        shutil.rmtree(tmp_path / folder)
    moved = (tmp_path / "exported").rename(tmp_path / "elsewhere")
    assert len(list(moved.glob("model-*.safetensors"))) > 1
    for file in moved.glob("*.json"):
        assert str(tmp_path) not in file.read_text()

    whole = AutoModelForMultimodalLM.from_pretrained(moved)
    its_processor = AutoProcessor.from_pretrained(moved)
    assert isinstance(whole, BlspForConditionalGeneration) and isinstance(its_processor, BlspProcessor)
    its_inputs = speech_inputs(its_processor, clips)
    assert its_inputs.keys() == inputs.keys() and all(torch.equal(its_inputs[name], inputs[name]) for name in inputs)
    assert torch.equal(whole(**its_inputs).logits, expected)
    assert torch.equal(whole.generate(**its_inputs, max_new_tokens=6, do_sample=False), written)
    assert {name.split(".")[0] for name, p in whole.named_parameters() if p.requires_grad} == {"multi_modal_projector"}

    half = AutoModelForMultimodalLM.from_pretrained(
        moved, dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager"
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.audio_tower.config._attn_implementation == half.language_model.config._attn_implementation == "eager"


def test_an_exported_model_with_other_tensors_is_refused(tiny_model, tmp_path):
    tiny_model[0].save_pretrained(tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "exported")
    weights = tmp_path / "exported/model.safetensors"
    tensors = load_file(weights)
    del tensors["audio_tower.conv1.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(BlspError, match=r"exported: tensors missing.*audio_tower\.conv1\.bias; export again"):
        BlspForConditionalGeneration.from_pretrained(tmp_path / "exported")


def test_the_command_exports_once(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model[0].save_pretrained(tmp_path / "models/adapter")
    assert main(["export", "served", "--dtype", "bfloat16"]) == 0
    assert "served" in capsys.readouterr().out
    assert {tensor.dtype for tensor in load_file("served/model.safetensors").values()} == {torch.bfloat16}
    assert main(["export", "served"]) == 1
    assert capsys.readouterr().err == "blsp export: served: is there already; remove it, or name another folder\n"


@pytest.fixture
def from_hub(tmp_path, monkeypatch):
    """Pins of backbones at a commit on the hub, cached here with a later commit that has nothing in it."""
    pins = tiny.save_backbones(tmp_path / "models/backbones")
    for part, pin in pins.items():
        repository = tmp_path / f"hub/models--owner--{part}"
        shutil.copytree(str(pin["name"]), repository / "snapshots" / COMMIT)
        (repository / "snapshots" / LATER_COMMIT).mkdir()
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(LATER_COMMIT)
        pin |= {"source": "hub", "name": f"models/backbones/{part}", "origin": f"owner/{part}", "revision": COMMIT}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return pins


def test_backbones_of_the_hub_are_loaded_at_their_pinned_commit(from_hub, clips, tmp_path, monkeypatch):
    model, processor = tiny.build(from_hub)
    model.save_pretrained("adapter")
    inputs = speech_inputs(processor, clips)
    expected = model(**inputs).logits
    shutil.rmtree("models/backbones")
    again, its_processor = (cls.from_pretrained("adapter") for cls in (BlspForConditionalGeneration, BlspProcessor))
    assert torch.equal(again(**speech_inputs(its_processor, clips)).logits, expected)
    monkeypatch.setattr(backbones, "pins", lambda: from_hub)
    llm, tokenizer = backbones.load_llm()
    assert torch.equal(llm.lm_head.weight, model.language_model.lm_head.weight)
    assert tokenizer.get_vocab().items() <= processor.tokenizer.get_vocab().items()


def test_a_changed_copy_of_a_backbone_of_the_hub_is_refused(from_hub):
    tiny.build(from_hub)[0].save_pretrained("adapter")
    weights = "models/backbones/llm/model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(BlspError, match="trained with the llm backbone .* bring the pinned backbone back"):
        BlspForConditionalGeneration.from_pretrained("adapter")


@pytest.fixture(params=["adapter", "models/adapter", "elsewhere/owner/name"])
def no_adapter(request, tmp_path, monkeypatch):
    """The name of a folder that is not there, or is empty; nobody may look for it elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    if request.param == "adapter":
        (tmp_path / "adapter").mkdir()
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host))
    yield request.param
    assert asked == []


def test_a_folder_without_an_adapter_is_refused_and_the_hub_is_not_asked(no_adapter):
    for kind in (BlspForConditionalGeneration, BlspProcessor, BlspConfig):
        load = kind.from_folder if kind is BlspConfig else kind.from_pretrained
        with pytest.raises(BlspError, match=f"^{no_adapter}: no adapter there; `blsp train` writes one$"):
            load(no_adapter)


def test_export_before_training_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert main(["export", "served"]) == 1
    assert capsys.readouterr().err == "blsp export: models/adapter: no adapter there; `blsp train` writes one\n"
    assert not (tmp_path / "served").exists()


def of_kind(config_class, text, **vision):
    """A configuration of LLM with eyes, its text model small."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | vision
    kind = SiglipVisionConfig if config_class is Gemma3Config else PixtralVisionConfig
    return config_class(text_config=text, vision_config=kind(image_size=28, patch_size=14, **vision))


@pytest.fixture(scope="module", params=["gemma3", "mistral3", "gemma3 tied", "mistral3 with llama"])
def multimodal(request, tmp_path_factory):
    """Pins of tiny backbones whose LLM is a multimodal checkpoint, and that LLM as transformers loads it."""
    name, _, particular = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("multimodal")
    pins = tiny.save_backbones(folder, "llama" if particular == "with llama" else name.replace("mistral3", "mistral"))
    text = AutoConfig.from_pretrained(folder / "llm")
    text.tie_word_embeddings = particular == "tied"
    kind, config_class = {
        "gemma3": (Gemma3ForConditionalGeneration, Gemma3Config),
        "mistral3": (Mistral3ForConditionalGeneration, Mistral3Config),
    }[name]
    config = of_kind(config_class, text, **({"head_dim": 8} if name == "mistral3" else {}))
    config.tie_word_embeddings = text.tie_word_embeddings
    torch.manual_seed(3)
    whole = kind(config).eval()
    for file in (folder / "llm").glob("*.safetensors"):
        file.unlink()
    whole.generation_config.eos_token_id = text.eos_token_id
    whole.save_pretrained(folder / "llm")
    pins["llm"]["sha256"] = sha256_of(folder / "llm")
    return pins, whole


@torch.no_grad()
def test_of_a_multimodal_llm_the_text_model_is_taken_with_its_weights(multimodal):
    pins, whole = multimodal
    llm, tokenizer = backbones.load_llm(pins)
    tokens = tokenizer("turn on the fan", return_tensors="pt").input_ids
    torch.testing.assert_close(llm(tokens).logits, whole(input_ids=tokens).logits, atol=1e-5, rtol=1e-5)
    assert type(llm) in AutoModelForCausalLM._model_mapping.values()
    assert sum(p.numel() for p in llm.parameters()) < sum(p.numel() for p in whole.parameters())
    assert llm.config.tie_word_embeddings == (llm.lm_head.weight is llm.get_input_embeddings().weight)


def test_a_multimodal_llm_hears_and_is_exported(multimodal, clips, tmp_path):
    pins, _ = multimodal
    model, processor = tiny.build(pins)
    model.save_pretrained(tmp_path / "adapter")
    expected = respond(model, processor, INSTRUCTION, clips, 6)
    assert any(expected)
    export(tmp_path / "adapter", tmp_path / "exported")
    for folder in ("adapter", "exported"):
        again, its_processor = (
            cls.from_pretrained(tmp_path / folder) for cls in (BlspForConditionalGeneration, BlspProcessor)
        )
        assert respond(again, its_processor, INSTRUCTION, clips, 6) == expected
    assert not any("vision" in name for name, _ in again.named_parameters())


def test_a_multimodal_checkpoints_template_may_lie_with_its_processor(pins, tmp_path):
    folder = tmp_path / "llm"
    shutil.copytree(pins["llm"]["name"], folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    moved = {"llm": {**pins["llm"], "name": str(folder)}}
    with pytest.raises(BlspError, match="the LLM has no chat template; choose an instruction-tuned checkpoint"):
        backbones.load_tokenizer(moved)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    asked = [{"role": "user", "content": "Which tram?"}]
    texts = {backbones.load_tokenizer(each).apply_chat_template(asked, tokenize=False) for each in (pins, moved)}
    assert len(texts) == 1


def test_a_multimodal_llm_without_a_text_model_of_its_own_is_refused(pins, tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 64, "num_key_value_heads": 1}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path)
    said = f"^{tmp_path}: transformers has no text model of its own for a qwen2_5_vl; choose an LLM without images"
    with pytest.raises(BlspError, match=said):
        load_language_model({"llm": pins["llm"] | {"name": str(tmp_path)}})


def test_an_llm_that_writes_no_text_is_refused(pins, tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(BlspError, match=f"^{tmp_path}: a vit writes no text; choose a chat LLM as backbones.llm_name$"):
        load_language_model({"llm": pins["llm"] | {"name": str(tmp_path)}})


@pytest.fixture(scope="module")
def stored_low(tmp_path_factory):
    """Pins of tiny backbones stored in few bits: the LLM in bfloat16, Whisper in float16."""
    folder = tmp_path_factory.mktemp("low")
    pins = tiny.save_backbones(folder)
    for part, kind, dtype in (
        ("llm", AutoModelForCausalLM, torch.bfloat16),
        ("speech", WhisperForConditionalGeneration, torch.float16),
    ):
        kind.from_pretrained(folder / part, dtype=dtype).save_pretrained(folder / part)
        (weights,) = {tensor.dtype for tensor in load_file(folder / part / "model.safetensors").values()}
        assert weights == dtype
        pins[part]["sha256"] = sha256_of(folder / part)
    return pins


def computed_in(model, processor, clips):
    """The dtypes of what each backbone computes on the way."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, _, out, name=name: seen.setdefault(name, set()).add(out.dtype))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("multi_modal_projector")
    ]
    model(**speech_inputs(processor, clips))
    for hook in hooks:
        hook.remove()
    return {part: set().union(*(dtypes for name, dtypes in seen.items() if name.startswith(part))) for part in PARTS}


PARTS = ("audio_tower", "language_model")


@torch.no_grad()
@pytest.mark.parametrize("stored", ["stored_low", "pins"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_backbones_compute_in_the_precision_that_is_asked_for(request, clips, tmp_path, stored, precision):
    pins, dtype = request.getfixturevalue(stored), getattr(torch, precision)
    model, processor = tiny.build(pins, precision=precision)
    assert computed_in(model, processor, clips) == {part: {dtype} for part in PARTS}
    switched, _ = tiny.build(pins)
    set_switches(switched, tiny.train_settings(precision=precision))
    assert computed_in(switched, processor, clips) == {part: {dtype} for part in PARTS}
    assert {p.dtype for each in (model, switched) for p in each.multi_modal_projector.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    again = BlspForConditionalGeneration.from_pretrained(tmp_path)
    assert computed_in(again, processor, clips) == {part: {dtype} for part in PARTS}
    inputs = speech_inputs(processor, clips)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    llm, _ = backbones.load_llm(pins, precision)
    assert {p.dtype for p in llm.parameters()} == {dtype}


@torch.no_grad()
def test_float32_is_the_stored_weights_computed_with_all_bits(stored_low):
    tokens = torch.arange(2, 30)[None]
    expected = AutoModelForCausalLM.from_pretrained(stored_low["llm"]["name"], dtype=torch.bfloat16)
    low = expected(tokens).logits
    assert torch.equal(backbones.load_llm(stored_low)[0](tokens).logits, low)  # None: as it is stored
    full = backbones.load_llm(stored_low, "float32")[0](tokens).logits
    torch.testing.assert_close(full, expected.float()(tokens).logits, atol=1e-6, rtol=1e-6)
    assert (full - low.float()).abs().max() > 1e-3


def test_kept_answers_are_named_by_the_precision_they_were_computed_in(pins):
    names = {
        Asker(pins["llm"], precision, 16, 0, 1.0, at_once, None).file_name(["Which tram?"])
        for precision in ("float32", "bfloat16")
        for at_once in (1, 8)
    }
    assert len(names) == 2
