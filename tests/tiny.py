"""Tiny random backbones, saved as checkpoints, and the model between them."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from blsp.files import sha256_of
from blsp.miniature.llm import train_tokenizer
from blsp.model import BlspConfig, BlspForConditionalGeneration, BlspProcessor
from blsp.params import Train, load_params
from tests.trained import PARAMS

# Tests do not follow params.yaml in these: their numbers rest on them.
PLAIN: dict[str, Any] = {
    "objective": "kd",
    "temperature": 2.0,
    "adapter": "conv",
    "encoding": "variable",
    "teacher": "live",
    "precision": "float32",
    "gradient_checkpointing": False,
    "compile": False,
}

WINDOW_S = 2
SECOND = 16_000

# What each family has of its own, small enough to matter within a test's prompts.
LLMS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen3": (Qwen3Config, {"head_dim": 16, "num_key_value_heads": 1}),
    "mistral": (MistralConfig, {"sliding_window": 8, "num_key_value_heads": 1}),
    "gemma2": (Gemma2Config, {"sliding_window": 8, "head_dim": 16, "num_key_value_heads": 1}),
    "gpt2": (GPT2Config, {"n_positions": 256}),  # learned positions: it sees where padding lies, if it is told so
    "granite": (GraniteConfig, {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "num_key_value_heads": 1}),
    "cohere": (CohereConfig, {"logit_scale": 0.25, "num_key_value_heads": 1}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 8, "head_dim": 16, "num_key_value_heads": 1}),
}


def train_settings(**changes: Any) -> Train:
    """The committed settings of training, but for PLAIN and these changes."""
    return Train(**{**load_params(PARAMS).train.model_dump(), **PLAIN, **changes})


def save_backbones(folder: Path, llm: str = "llama") -> dict[str, dict[str, object]]:
    """The pins of a random Whisper (folder/speech) and a random LLM (folder/llm), as backbones.json has them."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(seed=1, conversation_count=200)
    WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=64,
            num_mel_bins=80,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_source_positions=50 * WINDOW_S,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=1,
            init_std=0.2,
        )
    ).save_pretrained(folder / "speech")
    WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S).save_pretrained(folder / "speech")
    config_class, particulars = LLMS[llm]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        **particulars,
    )
    model = AutoModelForCausalLM.from_config(config)
    if llm == "qwen3":  # as its makers' own checkpoints: it samples unless told otherwise
        model.generation_config.update(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    model.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return {
        part: {
            "source": "local",
            "name": str(folder / part),
            "revision": None,
            "sha256": sha256_of(folder / part),
            "licence": "Apache-2.0",
        }
        for part in ("speech", "llm")
    }


def build(
    pins: dict[str, dict[str, object]], downsampling: int = 4, encoding: str = "variable", **settings: Any
) -> tuple[BlspForConditionalGeneration, BlspProcessor]:
    """A model with a random adapter between these backbones, and its processor."""
    torch.manual_seed(1)
    processor = BlspProcessor.from_backbones(pins, downsampling, encoding)
    config = BlspConfig(
        downsampling=downsampling,
        encoding=encoding,
        bottleneck=8,
        audio_token_id=processor.audio_token_id,
        backbones=pins,
        **settings,
    )
    return BlspForConditionalGeneration.from_backbones(config).eval(), processor
