"""From audio and text to model inputs: log-mel windows, and one placeholder expanded to one token a vector.

Axes: B prompts, C clips, W windows, M mel bins, T mel frames, L tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoTokenizer, BatchFeature, ProcessorMixin

from blsp.model.adapter import adapter_length
from blsp.model.chat import AUDIO_TOKEN
from blsp.model.configuration import BlspConfig
from blsp.model.encoder import encoder_length


class BlspProcessor(ProcessorMixin):
    """Makes the inputs of BlspForConditionalGeneration; put together from the backbones, nothing of its own."""

    def __init__(self, feature_extractor: Any, tokenizer: Any, conv_layers: int = 3) -> None:
        if tokenizer.convert_tokens_to_ids(AUDIO_TOKEN) in (None, tokenizer.unk_token_id):
            tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]})
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.audio_token = AUDIO_TOKEN
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        self.conv_layers = conv_layers
        super().__init__(feature_extractor, tokenizer, chat_template=tokenizer.chat_template)

    @classmethod
    def from_backbones(cls, speech: str | Path, llm: str | Path, conv_layers: int, **revisions: Any) -> "BlspProcessor":
        """The processor of these two checkpoints; `speech_revision`, `llm_revision` pin them on the hub."""
        feature_extractor = AutoFeatureExtractor.from_pretrained(speech, revision=revisions.get("speech_revision"))
        tokenizer = AutoTokenizer.from_pretrained(llm, revision=revisions.get("llm_revision"))
        return cls(feature_extractor, tokenizer, conv_layers)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "BlspProcessor":
        """The processor of a saved adapter, from the backbones its configuration names."""
        from blsp.model.pinning import backbone_source

        config = BlspConfig.from_pretrained(folder)
        (speech, speech_revision), (llm, llm_revision) = (backbone_source(config, part) for part in ("speech", "llm"))
        revisions = {"speech_revision": speech_revision, "llm_revision": llm_revision}
        return cls.from_backbones(speech, llm, config.conv_layers, **revisions)

    def __call__(
        self, text: Sequence[str], audio: Sequence[np.ndarray] = (), padding_side: str = "left"
    ) -> BatchFeature:
        """Padded input_ids and attention_mask (B, L) and, with audio, what `features` gives.

        `audio` holds float32 mono clips (N,) at the feature extractor's rate, in the order of the placeholders
        in `text`. Raises ValueError where placeholders and clips differ in number.
        """
        placeholders = sum(prompt.count(self.audio_token) for prompt in text)
        if placeholders != len(audio):
            raise ValueError(f"{placeholders} placeholders {self.audio_token} in the text, {len(audio)} audio clips")
        data: dict[str, Any] = {}
        if len(audio):
            data = self.features(audio)
            counts = iter(self.audio_token_count(len(clip)) for clip in audio)
            text = [self._expand(prompt, counts) for prompt in text]
        encoded = self.tokenizer(
            list(text), add_special_tokens=False, padding=True, padding_side=padding_side, return_tensors="pt"
        )
        return BatchFeature({"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask, **data})

    def audio_token_count(self, samples: int) -> int:
        """The exact number of speech vectors that a clip of `samples` samples becomes."""
        return adapter_length(self.frame_count(samples), self.conv_layers)

    def frame_count(self, samples: int) -> int:
        """The exact number of encoder frames that a clip of `samples` samples becomes, over all its windows."""
        return sum(encoder_length(mel) for mel in self._mel_frames(samples))

    def replace_audio_token(self, samples: int) -> str:
        """The text that stands for one clip in an expanded prompt."""
        return self.audio_token * self.audio_token_count(samples)

    def features(self, audio: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Log-mel windows of clips: input_features (W, M, T), feature_attention_mask (W, T), audio_windows (C,).

        A clip longer than the encoder's window is cut into windows; nothing is cut off. Windows are padded to
        the longest, with enough silence that a window's frames do not depend on the batch.
        """
        extractor = self.feature_extractor
        windows, mel_frames, per_clip = [], [], []
        for index, clip in enumerate(audio):
            if clip.ndim != 1 or not len(clip):
                raise ValueError(f"audio {index}: expected mono samples (N,), found shape {clip.shape}")
            cuts = [clip[start : start + extractor.n_samples] for start in range(0, len(clip), extractor.n_samples)]
            windows.extend(cuts)
            per_clip.append(len(cuts))
            mel_frames.extend(self._mel_frames(len(clip)))
        samples = min(max(len(window) for window in windows) + extractor.n_fft, extractor.n_samples)
        samples = -(-samples // extractor.hop_length) * extractor.hop_length
        padded = np.zeros((len(windows), samples), dtype=np.float32)
        for row, window in enumerate(windows):
            padded[row, : len(window)] = window
        mel = extractor._torch_extract_fbank_features(padded)[:, :, : max(mel_frames)]
        lengths = torch.tensor(mel_frames)
        return {
            "input_features": torch.from_numpy(np.ascontiguousarray(mel)),
            "feature_attention_mask": (torch.arange(max(mel_frames)) < lengths[:, None]).to(torch.long),
            "audio_windows": torch.tensor(per_clip),
        }

    def _mel_frames(self, samples: int) -> list[int]:
        window, hop = self.feature_extractor.n_samples, self.feature_extractor.hop_length
        full, rest = divmod(samples, window)
        return [window // hop] * full + ([-(-rest // hop)] if rest else [])

    def _expand(self, prompt: str, counts: Any) -> str:
        first, *rest = prompt.split(self.audio_token)
        return first + "".join(self.audio_token * next(counts) + part for part in rest)
