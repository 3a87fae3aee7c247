"""Saved, loaded, exported: what is written, what comes back, and what is refused."""

import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from blsp import backbones
from blsp.cli import main
from blsp.errors import BlspError
from blsp.model import BlspConfig, BlspForConditionalGeneration, BlspProcessor
from blsp.model.chat import AUDIO_TOKEN, build_prompt
from blsp.model.export import export
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
