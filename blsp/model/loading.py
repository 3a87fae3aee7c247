"""What from_pretrained and from_backbones are made of: pinned backbones, checked adapters, devices."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedModel,
    WhisperForConditionalGeneration,
)
from transformers.initialization import no_init_weights
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.errors import BlspError
from blsp.model.adapter import build_adapter
from blsp.model.chat import end_of_turn
from blsp.model.chat_template import load_tokenizer
from blsp.model.configuration import BlspConfig
from blsp.model.decoding import check_llm, end_token_ids
from blsp.model.pinning import backbone_source, check_backbone

if TYPE_CHECKING:
    from blsp.model.modeling import BlspForConditionalGeneration

ADAPTER_FILE = "model.safetensors"
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
SAMPLED_EMBEDDINGS = 4096


def load_backbones(config: BlspConfig, dtype: Any, device_map: Any) -> tuple[WhisperEncoder, PreTrainedModel]:
    """The encoder and the LLM that `config.backbones` pins; `config` takes over their configurations.

    Raises BlspError where one is missing or not the pinned one, or the LLM cannot be given speech.
    """
    pins = config.backbones or {}
    for part in ("speech", "llm"):
        check_backbone(pins, part)
    device_map = None if _is_spread(device_map) else device_map
    dtype = dtype or config.precision
    whisper = load_speech_model(pins, dtype, device_map)
    language_model = load_language_model(pins, dtype, device_map)
    config.audio_config, config.text_config = whisper.config, language_model.config
    return whisper.get_encoder(), language_model


def load_speech_model(pins: Mapping[str, Any], dtype: Any = None, device_map: Any = None) -> PreTrainedModel:
    """The pinned Whisper, encoder and decoder."""
    return _load(WhisperForConditionalGeneration, pins, "speech", dtype, device_map)


def load_language_model(pins: Mapping[str, Any], dtype: Any = None, device_map: Any = None) -> PreTrainedModel:
    """The pinned LLM, which stops at its chat template's end of a turn too; of a multimodal one the text model.

    Raises BlspError where it is no LLM, or cannot be given speech.
    """
    name, revision = backbone_source(pins, "llm")
    kind = type(AutoConfig.from_pretrained(name, revision=revision))
    auto = next((a for a in (AutoModelForCausalLM, AutoModelForMultimodalLM) if kind in a._model_mapping), None)
    if auto is None:
        raise BlspError(f"{name}: a {kind.model_type} writes no text; choose a chat LLM as backbones.llm_name")
    llm = text_model(_load(auto, pins, "llm", dtype, device_map))
    check_llm(llm)
    set_ends(llm, load_tokenizer(pins))
    return llm


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The causal LLM in a multimodal one, with its weights, without its eyes and ears; any other LLM as it is.

    Raises BlspError where transformers has no class for the text model alone.
    """
    if model.config.get_text_config() is model.config:
        return model
    body, head = model.get_decoder(), model.get_output_embeddings()
    refusal = BlspError(
        f"{model.name_or_path}: transformers has no text model of its own for a {model.config.model_type}; choose an "
        "LLM without images and audio as backbones.llm_name"
    )
    if type(body.config) not in AutoModelForCausalLM._model_mapping or head is None:
        raise refusal
    with torch.device("meta"), no_init_weights():
        llm = AutoModelForCausalLM.from_config(body.config)
    if type(llm.base_model) is not type(body):
        raise refusal
    setattr(llm, llm.base_model_prefix, body)
    llm.set_output_embeddings(head)
    body.config.tie_word_embeddings = head.weight is body.get_input_embeddings().weight
    llm.config, llm.generation_config, llm.name_or_path = body.config, model.generation_config, model.name_or_path
    return llm.eval()


def set_ends(llm: PreTrainedModel, tokenizer: Any) -> None:
    """Make the LLM stop where its chat template ends a turn, and where its generation configuration says already."""
    config = llm.generation_config
    ends = {*end_token_ids(llm), end_of_turn(tokenizer)} - {None}
    config.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def _load(kind: Any, pins: Mapping[str, Any], part: str, dtype: Any, device_map: Any) -> Any:
    name, revision = backbone_source(pins, part)
    options = {key: value for key, value in (("dtype", dtype), ("device_map", device_map)) if value is not None}
    return kind.from_pretrained(name, revision=revision, use_safetensors=True, **options)


def load_adapter(file: Path, config: BlspConfig) -> dict[str, torch.Tensor]:
    """The adapter's tensors, by their names in the whole model, on the CPU.

    Raises BlspError where the file is missing, or its names and shapes are not those that `config` asks for.
    """
    if not file.is_file():
        raise BlspError(f"{file}: no adapter there; `blsp train` writes one")
    tensors = load_file(file)
    with torch.device("meta"):
        asked = build_adapter(config).state_dict()
    expected = {f"multi_modal_projector.{key}": tensor.shape for key, tensor in asked.items()}
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise BlspError(
            f"{file}: tensors missing, unknown or of another shape: {', '.join(wrong)}; train the adapter again"
        )
    return tensors


@torch.no_grad()
def embedding_scale(embeddings: nn.Embedding) -> float:
    """The standard deviation of what the LLM takes for words, as `inputs_embeds`.

    Asked of the embedding module and not of its weights: Gemma's multiplies them by the square root of the width.
    What comes later, such as Granite's multiplier, meets words and speech alike.
    """
    vocabulary = embeddings.weight.shape[0]
    tokens = torch.arange(0, vocabulary, -(-vocabulary // SAMPLED_EMBEDDINGS), device=embeddings.weight.device)
    return float(embeddings(tokens).float().std())


def place(model: "BlspForConditionalGeneration", dtype: Any, device_map: Any) -> "BlspForConditionalGeneration":
    """The model with its adapter in `dtype`, on the device or spread over the devices that `device_map` names."""
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    if isinstance(dtype, torch.dtype):
        model.multi_modal_projector.to(dtype)
    if not _is_spread(device_map):
        model.multi_modal_projector.to(model.language_model.device)
        return model
    if isinstance(device_map, str):
        whole = list(model._no_split_modules)
        memory = None
        if device_map != "sequential":
            memory = get_balanced_memory(
                model, dtype=model.dtype, no_split_module_classes=whole, low_zero=device_map == "balanced_low_0"
            )
        device_map = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole, dtype=model.dtype)
    return dispatch_model(model, device_map)


def _is_spread(device_map: Any) -> bool:
    """Whether the map may name more than one device; what names one goes to each part's own loader."""
    if isinstance(device_map, dict):
        return device_map.keys() != {""}
    return device_map in SPREAD
