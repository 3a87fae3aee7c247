"""The speech-language model without the LLM's head: what AutoModel gives, and servers with heads of their own build on.

Axes: B prompts, C clips, M mel bins, T mel frames, S encoder frames, A adapter frames, L tokens, D LLM width.
"""

from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.conversion_mapping import WeightRenaming
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.errors import BlspError
from blsp.model.adapter import build_adapter
from blsp.model.configuration import BlspConfig
from blsp.model.encoder import encode, join_windows, split_windows

# An exported model names the LLM's weights as its class with a head does: in `model`, `transformer` or the like.
WITHOUT_HEAD = WeightRenaming(r"^language_model\.(?!lm_head\.)\w+\.", "language_model.")


class BlspModel(PreTrainedModel):
    """An encoder, an adapter and an LLM; both backbones are frozen, also when the model enters train mode."""

    config_class = BlspConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["WhisperEncoder", "ConvAdapter", "WordAdapter", "StackAdapter"]

    def __init__(
        self,
        config: BlspConfig,
        audio_tower: WhisperEncoder | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.audio_tower = audio_tower or WhisperEncoder(config.audio_config)
        self.multi_modal_projector = build_adapter(config)
        self.language_model = language_model or _headless_llm(config)
        with no_init_weights():  # the parts come with weights: loaded, or their own first ones
            self.post_init()
        self.freeze()

    def freeze(self) -> None:
        """Nothing; afterwards the adapter alone is trained, and the whole model is in evaluation mode."""
        self.audio_tower.requires_grad_(False)
        self.language_model.requires_grad_(False)
        self.train(False)

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

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The audio tower, where transformers and servers ask for the encoder of a modality."""
        return self.audio_tower if modality == "audio" else super().get_encoder(modality=modality)

    @torch.no_grad()
    def encode_audio(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder frames of each clip (C, S, E) and their counts (C,), encoded as `config.encoding` says.

        input_features (C, M, T) and input_features_mask (C, T) come from the processor. A clip longer than the
        encoder's window is encoded window by window and joined. No gradient: the encoder is frozen.
        """
        tower = self.audio_tower
        features, mask, windows_per_clip = split_windows(
            input_features.to(tower.device, tower.dtype),
            input_features_mask.to(tower.device),
            2 * tower.config.max_source_positions,
        )
        is_padded = self.config.encoding == "padded"
        frames = tower(features).last_hidden_state if is_padded else encode(tower, features, mask)
        return join_windows(frames, mask[:, ::2].sum(-1), windows_per_clip)

    def get_audio_features(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | list[torch.Tensor], **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The speech vectors of all clips in a row, as `pooler_output` (sum of A, D).

        Arguments as encode_audio's; servers pass `return_dict` too, which changes nothing, and the mask of clips
        that differ in length as a list of its rows (T,).
        """
        if isinstance(input_features_mask, list):
            input_features_mask = torch.stack(input_features_mask)
        return self.project(*self.encode_audio(input_features, input_features_mask))

    def project(self, frames: torch.Tensor, counts: torch.Tensor) -> BaseModelOutputWithPooling:
        """As get_audio_features, from the clips' encoder frames (C, S, E) and their counts (C,)."""
        weight = self.multi_modal_projector.norm.weight
        vectors, lengths = self.multi_modal_projector(
            frames.to(weight), counts.to(weight.device), self.get_input_embeddings()
        )
        valid = torch.arange(vectors.shape[1], device=vectors.device) < lengths[:, None].to(vectors.device)
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
        return embeddings.masked_scatter(is_audio[..., None], speech_vectors.to(embeddings))

    def forward(self, **inputs: Any) -> Any:
        """The LLM's last states (B, L, D), for all that the LLM itself takes; speech enters as `embed` puts it."""
        return self.language_model(**inputs)


def _headless_llm(config: BlspConfig) -> PreTrainedModel:
    if config.backbones:
        raise BlspError("this configuration is an adapter's, without its backbones' weights; `blsp export` writes all")
    llm = AutoModel.from_config(config.text_config)
    if config.audio_token_id >= config.text_config.vocab_size:
        _let_pass(llm.get_input_embeddings(), config.audio_token_id)
    return llm


def _let_pass(embeddings: nn.Embedding, placeholder: int) -> None:
    """Nothing; a placeholder outside the vocabulary is looked up as the first word from now on.

    A server looks up every token of a prompt and puts speech over it afterwards. The class is replaced, and not
    `forward` alone: vLLM makes embeddings its own, and of theirs keeps what their class says.
    """
    found: Any = type(embeddings)

    class Embedding(found):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return super().forward(input_ids.masked_fill(input_ids == placeholder, 0))

    embeddings.__class__ = Embedding
