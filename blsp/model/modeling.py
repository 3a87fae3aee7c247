"""The speech-language model: frozen Whisper encoder, trained adapter, frozen causal LLM.

Axes: B prompts, C clips, W windows, M mel bins, T mel frames, S encoder frames, A adapter frames, L tokens,
D LLM width, V vocabulary.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
    WhisperForConditionalGeneration,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.errors import BlspError
from blsp.model.adapter import ModalityAdapter
from blsp.model.configuration import BlspConfig
from blsp.model.encoder import encode, join_windows
from blsp.model.pinning import backbone_source, check_backbone

ADAPTER_PREFIX = "multi_modal_projector."
ADAPTER_FILE = "model.safetensors"


class BlspForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A causal LLM that takes speech where its prompt has the placeholder token.

    Both backbones are frozen and in evaluation mode, and stay so when the model enters train mode. Saved is
    the adapter alone, with the pinned names of its backbones.
    """

    config_class = BlspConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["WhisperEncoderLayer"]

    def __init__(
        self,
        config: BlspConfig,
        audio_tower: WhisperEncoder | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.audio_tower = audio_tower or WhisperEncoder(config.audio_config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.multi_modal_projector = ModalityAdapter(
            config.audio_config.d_model,
            config.text_config.hidden_size,
            config.conv_layers,
            config.conv_kernel,
            config.bottleneck,
        )
        self.audio_tower.requires_grad_(False)
        self.language_model.requires_grad_(False)
        self.generation_config = self.language_model.generation_config
        self.train(False)

    @classmethod
    def from_backbones(cls, config: BlspConfig) -> Self:
        """The model of the backbones that `config.backbones` pins, with a fresh adapter.

        The adapter's closing norm is scaled to the LLM's embeddings, so that untrained speech vectors have the
        size of words. Raises BlspError where a backbone is missing or not the pinned one.
        """
        for part in ("speech", "llm"):
            check_backbone(config, part)
        (speech, speech_revision), (llm, llm_revision) = (backbone_source(config, part) for part in ("speech", "llm"))
        whisper = WhisperForConditionalGeneration.from_pretrained(speech, revision=speech_revision)
        language_model = AutoModelForCausalLM.from_pretrained(llm, revision=llm_revision)
        config.audio_config, config.text_config = whisper.config, language_model.config
        model = cls(config, whisper.get_encoder(), language_model)
        scale = language_model.get_input_embeddings().weight.float().std().item()
        nn.init.constant_(model.multi_modal_projector.norm.weight, scale)
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Self:
        """A trained model: its backbones from their pinned sources, its adapter from `folder`.

        Raises BlspError where the adapter's tensors are not exactly those the configuration asks for, or a
        backbone is not the pinned one.
        """
        file = Path(folder) / ADAPTER_FILE
        if not file.is_file():
            raise BlspError(f"{file}: no adapter there; `blsp train` writes one")
        model = cls.from_backbones(BlspConfig.from_pretrained(folder))
        tensors = load_file(file)
        expected = {key: tensor.shape for key, tensor in model.adapter_state().items()}
        found = {key: tensor.shape for key, tensor in tensors.items()}
        if found != expected:
            wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            raise BlspError(
                f"{file}: tensors missing, unknown or of another shape: {', '.join(wrong)}; train the adapter again"
            )
        model.load_state_dict(tensors, strict=False)
        return model

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Nothing; `folder` afterwards holds config.json and the adapter's tensors, nothing of the backbones."""
        super().save_pretrained(folder, state_dict=self.adapter_state(), **kwargs)
        (Path(folder) / "generation_config.json").unlink(missing_ok=True)  # the LLM's own counts

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors, under their names in the whole model."""
        return {key: tensor for key, tensor in self.state_dict().items() if key.startswith(ADAPTER_PREFIX)}

    def train(self, mode: bool = True) -> Self:
        """This model with its adapter in the given mode and its backbones in evaluation mode."""
        super().train(mode)
        self.audio_tower.eval()
        self.language_model.eval()
        for module in self.language_model.modules():
            # A layer asks its own flag whether to recompute itself; what is in it stays as it is.
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = mode
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The audio tower, where transformers and servers ask for the encoder of a modality."""
        return self.audio_tower if modality == "audio" else super().get_encoder(modality=modality)

    def get_audio_features(
        self, input_features: torch.Tensor, feature_attention_mask: torch.Tensor, audio_windows: torch.Tensor
    ) -> BaseModelOutputWithPooling:
        """The speech vectors of all clips in a row, as `pooler_output` (sum of A, D).

        input_features (W, M, T), feature_attention_mask (W, T) and audio_windows (C,) come from the processor.
        """
        return self.project(*self.encode_audio(input_features, feature_attention_mask, audio_windows))

    @torch.no_grad()
    def encode_audio(
        self, input_features: torch.Tensor, feature_attention_mask: torch.Tensor, audio_windows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder frames (C, S, E) of the clips and their counts (C,); arguments as of get_audio_features."""
        frames = encode(self.audio_tower, input_features.to(self.audio_tower.dtype), feature_attention_mask)
        return join_windows(frames, feature_attention_mask[:, ::2].sum(-1), audio_windows)

    def project(self, frames: torch.Tensor, counts: torch.Tensor) -> BaseModelOutputWithPooling:
        """As get_audio_features, from the clips' encoder frames (C, S, E) and their counts (C,)."""
        vectors, lengths = self.multi_modal_projector(frames.to(self.multi_modal_projector.norm.weight.dtype), counts)
        valid = torch.arange(vectors.shape[1], device=vectors.device) < lengths[:, None]
        return BaseModelOutputWithPooling(last_hidden_state=frames, pooler_output=vectors[valid])

    def embed(self, input_ids: torch.Tensor, speech_vectors: torch.Tensor | None) -> torch.Tensor:
        """The LLM's input vectors (B, L, D), with speech vectors (sum of A, D) in the placeholders' places.

        The placeholder may lie outside the LLM's vocabulary: its own embedding is never looked up.
        Raises ValueError where there are more or fewer placeholders than vectors.
        """
        is_audio = input_ids == self.config.audio_token_id
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_audio, 0))
        if speech_vectors is None:
            return embeddings
        if int(is_audio.sum()) != len(speech_vectors):
            raise ValueError(
                f"the prompts have {int(is_audio.sum())} audio tokens, the clips give {len(speech_vectors)} vectors; "
                "make both with one BlspProcessor call"
            )
        return embeddings.masked_scatter(is_audio[..., None], speech_vectors.to(embeddings.dtype))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        audio_windows: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The LLM's output, logits (B, L, V) among it, for prompts (B, L) with or without speech.

        Further arguments (position_ids, past_key_values, labels, logits_to_keep, ...) are the LLM's own.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            vectors = None
            if input_features is not None:
                assert feature_attention_mask is not None and audio_windows is not None
                vectors = self.get_audio_features(input_features, feature_attention_mask, audio_windows).pooler_output
            inputs_embeds = self.embed(input_ids, vectors)
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The inputs of one decoding step: speech enters with the prompt, at the first step alone."""
        names = ("input_features", "feature_attention_mask", "audio_windows")
        audio = {name: kwargs.pop(name, None) for name in names}
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not inputs.get("use_cache", True):
            inputs.update(audio)
        return inputs
