"""From audio and text to model inputs: log-mel features, and one placeholder expanded to one token a vector.

Axes: B prompts, C clips, W windows, M mel bins, T mel frames, L tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoFeatureExtractor, BatchFeature, ProcessorMixin
from transformers.utils import PROCESSOR_NAME

from blsp.errors import BlspError
from blsp.model.adapter import adapter_length
from blsp.model.chat import AUDIO_TOKEN
from blsp.model.chat_template import load_spoken_tokenizer
from blsp.model.configuration import BlspConfig
from blsp.model.encoder import encoder_length
from blsp.model.pinning import backbone_source

# LLMs' own chat templates know strings alone. This goes before them, and makes one string of a message's parts.
JOIN_PARTS = (
    "{%- set joined = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message.content is defined and message.content is not none and message.content is not string -%}"
    "{%- set text = namespace(content='') -%}{%- for part in message.content -%}"
    "{%- set is_audio = part.type in ('audio', 'input_audio', 'audio_url') -%}"
    "{%- set text.content = text.content + ('AUDIO' if is_audio else part.text) -%}{%- endfor -%}"
    "{%- set message = dict(message, content=text.content) -%}{%- endif -%}"
    "{%- set joined.messages = joined.messages + [message] -%}{%- endfor -%}"
    "{%- set messages = joined.messages %}\n"
).replace("AUDIO", AUDIO_TOKEN)
LOUDEST = 16.0  # times full scale: decoders go beyond 1, but 16-bit numbers taken for floats go far beyond this


class BlspProcessor(ProcessorMixin):
    """Makes the inputs of BlspForConditionalGeneration; put together from the backbones, nothing of its own."""

    text_kwargs: ClassVar[dict[str, Any]] = {
        "add_special_tokens": False,  # the chat template writes them
        "padding": True,
        "return_tensors": "pt",
        "return_token_type_ids": False,
    }

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        downsampling: int = 8,
        encoding: str = "variable",
    ) -> None:
        if tokenizer.convert_tokens_to_ids(AUDIO_TOKEN) in (None, tokenizer.unk_token_id):
            tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]})
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.audio_token = AUDIO_TOKEN
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        self.downsampling, self.encoding = downsampling, encoding
        if chat_template is None and tokenizer.chat_template is not None:
            chat_template = JOIN_PARTS + tokenizer.get_chat_template()
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_backbones(cls, pins: Mapping[str, Any], downsampling: int, encoding: str = "variable") -> "BlspProcessor":
        """The processor of the two backbones that `pins` names, as backbones.json does.

        Raises BlspError where one is missing, or the LLM's chat template or tokenizer cannot take speech.
        """
        speech, revision = backbone_source(pins, "speech")
        feature_extractor = AutoFeatureExtractor.from_pretrained(speech, revision=revision)
        return cls(feature_extractor, load_spoken_tokenizer(pins), downsampling=downsampling, encoding=encoding)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "BlspProcessor":
        """A saved processor, an exported model's among them, or that of the backbones that a saved adapter names."""
        if (Path(folder) / PROCESSOR_NAME).is_file():
            return super().from_pretrained(folder, **kwargs)
        config = BlspConfig.from_folder(folder)
        if not config.backbones:
            return super().from_pretrained(folder, **kwargs)
        return cls.from_backbones(config.backbones, config.downsampling, config.encoding)

    def __call__(self, text: Any = None, audio: Any = None, padding_side: str = "left", **kwargs: Any) -> BatchFeature:
        """Padded input_ids and attention_mask (B, L) and, with audio, what `features` gives.

        `audio` holds mono clips (N,) at the feature extractor's rate, floats from -1 to 1 or whole numbers of 16 or 32
        bits, in the order of the placeholders in `text`. Raises ValueError where placeholders and clips differ in
        number, and BlspError where a clip holds anything else.
        """
        audio = None if audio is None or len(audio) == 0 else audio
        return super().__call__(text=text, audio=audio, padding_side=padding_side, **kwargs)

    def _normalize_conversations(self, conversation: Any) -> tuple[list[Any], bool]:
        """As transformers does, and audio parts in OpenAI's form become transformers' own."""
        conversations, is_batched = super()._normalize_conversations(conversation)
        for turns in conversations:
            for message in turns:
                if isinstance(message.get("content"), list):
                    message["content"] = [_as_audio_part(part) for part in message["content"]]
        return conversations, is_batched

    def validate_inputs(self, text: Any = None, audio: Any = None, **kwargs: Any) -> None:
        placeholders = sum(prompt.count(self.audio_token) for prompt in text or [])
        clips = len(audio or [])
        if text is not None and placeholders != clips:
            raise ValueError(f"{placeholders} placeholders {self.audio_token} in the text, {clips} audio clips")
        super().validate_inputs(text=text, audio=audio, **kwargs)

    def _process_audio(
        self, audio: Sequence[np.ndarray], sampling_rate: int | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], list[str]]:
        own_rate = self.feature_extractor.sampling_rate
        if sampling_rate not in (None, own_rate):
            raise ValueError(f"audio of {sampling_rate} Hz, but the speech model hears {own_rate} Hz; resample it")
        inputs: dict[str, Any] = self.features(audio)
        inputs["num_audio_tokens"] = [self.audio_token_count(len(clip)) for clip in audio]
        return inputs, [self.replace_audio_token(inputs, index) for index in range(len(audio))]

    def replace_audio_token(self, audio_inputs: dict[str, Any], audio_idx: int, **kwargs: Any) -> str:
        """The text that stands for one clip in an expanded prompt."""
        return self.audio_token * audio_inputs["num_audio_tokens"][audio_idx]

    def audio_token_count(self, samples: int) -> int:
        """The exact number of speech vectors that a clip of `samples` samples becomes."""
        return adapter_length(self.frame_count(samples), self.downsampling)

    def frame_count(self, samples: int) -> int:
        """The exact number of encoder frames that a clip of `samples` samples becomes, over all its windows."""
        return sum(encoder_length(mel) for mel in self._mel_frames(samples))

    def features(self, audio: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Log-mel features of whole clips: input_features (C, M, T), input_features_mask (C, T).

        The encoder's windows of a clip lie one after the other in T; nothing is cut off. Under `variable`
        encoding the last is as long as its audio, with enough silence behind it that its features do not depend
        on the batch; under `padded` it is padded as the feature extractor pads.
        Raises BlspError where there is no clip, or one is not mono, empty, not finite or far beyond full scale.
        """
        extractor = self.feature_extractor
        windows, mel_frames = [], []
        if not len(audio):
            raise BlspError("no audio: at least one clip is needed")
        for clip in map(_as_floats, audio, range(len(audio))):
            windows += [clip[start : start + extractor.n_samples] for start in range(0, len(clip), extractor.n_samples)]
            mel_frames.append(self._mel_frames(len(clip)))
        mel = self._padded_mel(windows) if self.encoding == "padded" else self._variable_mel(windows)
        whole = extractor.n_samples // extractor.hop_length
        longest = max(len(frames) * whole if self.encoding == "padded" else sum(frames) for frames in mel_frames)
        features = torch.zeros(len(mel_frames), mel.shape[1], longest)
        mask = torch.zeros(len(mel_frames), longest, dtype=torch.long)
        rows = iter(torch.from_numpy(mel))
        for clip_features, clip_mask, frames in zip(features, mask, mel_frames, strict=True):
            clip_mask[: sum(frames)] = 1
            for number in range(len(frames)):
                window = next(rows)[:, : longest - number * whole]
                clip_features[:, number * whole : number * whole + window.shape[1]] = window
        return {"input_features": features, "input_features_mask": mask}

    @property
    def unused_input_names(self) -> list[str]:
        return ["num_audio_tokens"]

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "input_features_mask"]

    def _padded_mel(self, windows: list[np.ndarray]) -> np.ndarray:
        rate = self.feature_extractor.sampling_rate
        return np.asarray(self.feature_extractor(windows, sampling_rate=rate, return_tensors="np").input_features)

    def _variable_mel(self, windows: list[np.ndarray]) -> np.ndarray:
        extractor = self.feature_extractor
        samples = min(max(len(window) for window in windows) + extractor.n_fft, extractor.n_samples)
        samples = -(-samples // extractor.hop_length) * extractor.hop_length
        padded = np.zeros((len(windows), samples), dtype=np.float32)
        for row, window in enumerate(windows):
            padded[row, : len(window)] = window
        return np.asarray(extractor._torch_extract_fbank_features(padded))

    def _mel_frames(self, samples: int) -> list[int]:
        window, hop = self.feature_extractor.n_samples, self.feature_extractor.hop_length
        full, rest = divmod(samples, window)
        return [window // hop] * full + ([-(-rest // hop)] if rest else [])


def _as_audio_part(part: Any) -> Any:
    """A part of a message; OpenAI's `input_audio` and `audio_url` as {"type": "audio", ...}."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_audio":
        return {"type": "audio", "audio": part["input_audio"]["data"]}
    if kind == "audio_url":
        address = part["audio_url"]
        return {"type": "audio", "url": address["url"] if isinstance(address, dict) else address}
    return part


def _as_floats(clip: Any, index: int) -> np.ndarray:
    """The samples of clip number `index` as float32 (N,), full scale at 1. Raises BlspError where they are none."""
    samples = np.asarray(clip)
    if samples.ndim != 1 or not len(samples):
        raise BlspError(f"audio {index}: expected mono samples (N,), found shape {samples.shape}")
    if samples.dtype in (np.int16, np.int32):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    if samples.dtype.kind != "f":
        raise BlspError(f"audio {index}: samples are {samples.dtype}; expected floats, int16 or int32")
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise BlspError(
            f"audio {index}: {int((~np.isfinite(samples)).sum())} samples are NaN or infinite; decode it again"
        )
    if (loudest := float(np.abs(samples).max())) > LOUDEST:
        raise BlspError(
            f"audio {index}: samples reach {loudest:g}, but full scale is 1; divide 16-bit samples by 32768"
        )
    return samples
