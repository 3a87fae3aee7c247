"""The speech-language model: frozen Whisper encoder, trained adapter, frozen causal LLM.

Axes: B prompts, L tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.errors import BlspError
from blsp.model.adapter import ConvAdapter, StackAdapter, adapter_length, build_adapter
from blsp.model.configuration import BlspConfig
from blsp.model.encoder import encoder_length
from blsp.model.headless import BlspModel
from blsp.model.loading import ADAPTER_FILE, embedding_scale, load_adapter, load_backbones, place
from blsp.model.responses import positions_of

ADAPTER_PREFIX = "multi_modal_projector."
AUDIO_INPUTS = ("input_features", "input_features_mask")


class BlspForConditionalGeneration(BlspModel, GenerationMixin):
    """A causal LLM that takes speech where its prompt has the placeholder token.

    Both backbones are frozen and in evaluation mode, and stay so when the model enters train mode. Saved is
    the adapter alone, with the pinned names of its backbones; a model without pins is saved whole.
    """

    def __init__(
        self,
        config: BlspConfig,
        audio_tower: WhisperEncoder | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config, audio_tower, language_model or AutoModelForCausalLM.from_config(config.text_config))
        self.generation_config = self.language_model.generation_config

    @classmethod
    def from_backbones(
        cls, config: BlspConfig, dtype: Any = None, device_map: Any = None, attn_implementation: Any = None
    ) -> Self:
        """The model of the backbones that `config.backbones` pins, with a fresh adapter.

        The adapter's closing norm is scaled to the LLM's embeddings, so that untrained speech vectors have the
        size of words. The three options mean what they mean to transformers' from_pretrained; without a dtype
        the backbones compute in `config.precision` and the adapter in float32.
        Raises BlspError where a backbone is missing or not the pinned one, or the LLM cannot be given speech.
        """
        audio_tower, language_model = load_backbones(config, dtype, device_map)
        model = cls(config, audio_tower, language_model)
        model.scale(model.multi_modal_projector)
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        return place(model, dtype, device_map)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, config: BlspConfig | None = None, **kwargs: Any) -> Any:
        """A trained model: of a saved adapter, its backbones from their pinned sources, or an exported one, whole.

        For an adapter, dtype, device_map and attn_implementation may be given; for an exported model whatever
        transformers' from_pretrained takes. Raises BlspError where the tensors are not exactly those that the
        configuration asks for, or a backbone is not the pinned one.
        """
        config = config or BlspConfig.from_folder(folder)
        if config.backbones:
            options = {name: kwargs.pop(name, None) for name in ("dtype", "device_map", "attn_implementation")}
            # The Auto classes always pass these three; a folder has no use for them.
            if unknown := sorted(kwargs.keys() - {"adapter_kwargs", "revision", "trust_remote_code"}):
                raise TypeError(f"an adapter loads with {', '.join(options)} alone; found {', '.join(unknown)}")
            tensors = load_adapter(Path(folder) / ADAPTER_FILE, config)
            model = cls.from_backbones(config, **options)
            model.load_state_dict(tensors, strict=False)
            return model
        wants_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(folder, *args, config=config, output_loading_info=True, **kwargs)
        if wrong := sorted(map(str, {*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]})):
            raise BlspError(f"{folder}: tensors missing, unknown or of another shape: {', '.join(wrong)}; export again")
        model.freeze()
        return (model, report) if wants_report else model

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Nothing; `folder` afterwards holds config.json and the adapter's tensors, nothing of the backbones.

        A model that pins no backbones is saved whole, as transformers saves any model.
        """
        if not self.config.backbones:
            super().save_pretrained(folder, **kwargs)
            return
        if kwargs:
            raise TypeError(f"an adapter is saved without options; found {', '.join(kwargs)}")
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self.adapter_state().items()}
        save_file(tensors, Path(folder) / ADAPTER_FILE, metadata={"format": "pt"})

    def scale(self, adapter: Any) -> None:
        """Give what a fresh adapter puts out the size of the LLM's embeddings."""
        nn.init.constant_(adapter.norm.weight, embedding_scale(self.language_model.get_input_embeddings()))

    def fresh_adapter(self) -> ConvAdapter | StackAdapter:
        """An untrained adapter beside the model's own, on its device and in its precision, in evaluation mode."""
        adapter, own = build_adapter(self.config), self.multi_modal_projector.norm.weight
        self.scale(adapter)
        return adapter.requires_grad_(False).to(own.device, own.dtype).eval()

    @contextmanager
    def hearing_through(self, adapter: Any) -> Iterator[None]:
        """For a while the model hears through this adapter in place of its own."""
        own, self.multi_modal_projector = self.multi_modal_projector, adapter
        try:
            yield
        finally:
            self.multi_modal_projector = own

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors, under their names in the whole model."""
        return {key: tensor for key, tensor in self.state_dict().items() if key.startswith(ADAPTER_PREFIX)}

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The LLM's output, logits (B, L, V) among it, for prompts (B, L) with or without speech.

        Positions count real tokens only, so that padding on either side moves nothing. Further arguments
        (past_key_values, use_cache, labels, ...) are the LLM's own.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            vectors = None
            if input_features is not None:
                assert input_features_mask is not None
                vectors = self.get_audio_features(input_features, input_features_mask).pooler_output
            inputs_embeds = self.embed(input_ids, vectors)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = positions_of(attention_mask)[:, -inputs_embeds.shape[1] :]
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: torch.Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The inputs of one decoding step: speech enters with the prompt, at the first step alone."""
        audio = {name: kwargs.pop(name, None) for name in AUDIO_INPUTS}
        inputs = super().prepare_inputs_for_generation(
            *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not inputs.get("use_cache", True):
            inputs.update(audio)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        # transformers repeats row by row, as suits one clip a prompt. Two beams of a prompt with the clips a and b
        # want a b a b, not a a b b.
        audio = {name: kwargs.pop(name) for name in AUDIO_INPUTS if kwargs.get(name) is not None}
        if audio and expand_size > 1:
            assert input_ids is not None
            mel_frames = audio["input_features_mask"].sum(-1)
            vectors = [adapter_length(encoder_length(count), self.config.downsampling) for count in mel_frames.tolist()]
            placeholders = (input_ids == self.config.audio_token_id).sum(-1).cpu()
            prompt_of_clip = torch.searchsorted(placeholders.cumsum(0), torch.tensor(vectors).cumsum(0))
            order = [(prompt_of_clip == row).nonzero().flatten().repeat(expand_size) for row in range(len(input_ids))]
            audio = {name: tensor[torch.cat(order).to(tensor.device)] for name, tensor in audio.items()}
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, {**kwargs, **audio}
