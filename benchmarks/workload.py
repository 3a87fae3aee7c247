"""What the training benchmarks run on: models of two shapes with random weights, utterances of drawn lengths.

Axes: M mel bins, T mel frames.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.model import BlspConfig, BlspForConditionalGeneration

AUDIO_TOKEN_ID = 3
PREFIX = list(range(10, 32))  # "###[Human]:" and the instruction, before the speech
CLOSING = list(range(40, 48))  # "###[Assistant]:", after it


@dataclass(frozen=True)
class Shape:
    """The two backbones' configurations and the precision of their weights; the adapter is the paper's."""

    audio: WhisperConfig
    text: LlamaConfig
    dtype: torch.dtype

    def config(self) -> BlspConfig:
        """A new one, of the whole model: models write into theirs, such as which attention they chose."""
        audio, text = deepcopy(self.audio), deepcopy(self.text)
        return BlspConfig(audio_config=audio, text_config=text, audio_token_id=AUDIO_TOKEN_ID, downsampling=8)


def small() -> Shape:
    """Whisper-tiny's encoder and a Llama of 110 M parameters in float32: what a CPU can step."""
    return Shape(
        WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536),
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            tie_word_embeddings=True,
        ),
        torch.float32,
    )


def large() -> Shape:
    """Whisper-small's encoder and Llama-2-7B's shape in bfloat16, as in the paper: for a GPU."""
    return Shape(
        WhisperConfig(d_model=768, encoder_layers=12, encoder_attention_heads=12, encoder_ffn_dim=3072),
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=32,
            num_attention_heads=32,
            tie_word_embeddings=False,
        ),
        torch.bfloat16,
    )


SHAPES: dict[str, Callable[[], Shape]] = {"small": small, "large": large}


def new_model(shape: Shape, device: torch.device) -> BlspForConditionalGeneration:
    """A model of the shape in train mode, its random weights made on the device; the adapter is float32."""
    torch.manual_seed(0)
    config = shape.config()
    with device:
        model = BlspForConditionalGeneration(
            config,
            WhisperEncoder._from_config(config.audio_config, dtype=shape.dtype),
            AutoModelForCausalLM.from_config(config.text_config, dtype=shape.dtype),
        )
    model.multi_modal_projector.float()
    return model.train()


def precision(model: BlspForConditionalGeneration) -> AbstractContextManager[object]:
    """As accelerate runs the objective: under autocast where the LLM is in bfloat16."""
    is_half = model.language_model.dtype == torch.bfloat16
    return torch.autocast(model.device.type, torch.bfloat16, enabled=is_half)


@dataclass(frozen=True, eq=False)
class Utterance:
    """Log-mel features (M, T); what stands before and after the speech, transcript and response as token ids."""

    features: torch.Tensor
    prefix: list[int]
    closing: list[int]
    transcript: list[int]
    response: list[int]

    @property
    def seconds(self) -> float:
        """Of audio."""
        return self.features.shape[1] / 100

    @property
    def frames(self) -> int:
        """Of the encoder, 50 a second."""
        return (self.features.shape[1] + 1) // 2


def librispeech_like(count: int, seed: int = 0, vocabulary: int = 32_000) -> list[Utterance]:
    """Utterances whose lengths are spread like LibriSpeech's: many near 15 s, a tail of short ones."""
    rng = np.random.default_rng(seed)
    return [utterance(s, rng, vocabulary) for s in librispeech_seconds(count, rng).tolist()]


def librispeech_seconds(count: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths in s, 1.3 to 35, of mean 12: many near 15, a tail of short ones."""
    seconds = np.where(rng.random(count) < 0.6, rng.normal(14.5, 1.2, count), rng.gamma(3.0, 3.0, count))
    return np.clip(seconds, 1.3, 35)


def utterance(
    seconds: float, rng: np.random.Generator, vocabulary: int = 32_000, response_tokens: int | None = None
) -> Utterance:
    """One utterance of so many seconds, three tokens of transcript a second, and 15 to 64 of response."""

    def ids(count: int) -> list[int]:
        return rng.integers(10, vocabulary, count).tolist()

    mel = torch.from_numpy(rng.normal(0, 1, (80, round(seconds * 100))).astype(np.float32))
    response = ids(int(rng.integers(15, 65)) if response_tokens is None else response_tokens)
    return Utterance(mel, PREFIX, CLOSING, ids(round(3 * seconds) + 1), response)
