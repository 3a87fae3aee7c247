"""What the miniature's speech model hears while it learns: log-mel features, other voices made of them, gaps.

Axes: B utterances, M mel bins, T mel frames (50 a second here: half of what Whisper computes).
"""

import random

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from blsp.miniature.synthesis import SAMPLING_RATE_HZ

MEL_BINS = 80
HOP = 320  # samples: mel frames every 20 ms, encoder frames every 40 ms, half of what Whisper computes
CLIPS_AT_ONCE = 50
VOCAL_TRACT_WARP = 0.12  # share of a formant's frequency


def all_features(extractor: WhisperFeatureExtractor, clips: list[np.ndarray]) -> list[torch.Tensor]:
    """The log-mel features (M, T) of each clip, its window's padding cut off."""
    features = []
    for start in tqdm(range(0, len(clips), CLIPS_AT_ONCE), desc="mel", unit="batch"):
        cut = [clip[: extractor.n_samples] for clip in clips[start : start + CLIPS_AT_ONCE]]
        samples = min(max(map(len, cut)) + extractor.n_fft, extractor.n_samples)
        padded = np.zeros((len(cut), -(-samples // HOP) * HOP), dtype=np.float32)
        for row, clip in enumerate(cut):
            padded[row, : len(clip)] = clip
        mel = torch.from_numpy(extractor._torch_extract_fbank_features(padded))
        features += [mel[row, :, : -(-len(clip) // HOP)].clone() for row, clip in enumerate(cut)]
    return features


def pad(features: list[torch.Tensor], frames: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, M, T) and the mask (B, T) of their valid frames, T the longest or `frames`.

    A longer window is filled with what the extractor makes of silence: the clip's floor.
    """
    lengths = torch.tensor([clip.shape[1] for clip in features])
    length = frames or int(lengths.max())
    padded = torch.stack(
        [nn.functional.pad(clip, (0, length - clip.shape[1]), value=clip.min().item()) for clip in features]
    )
    return padded, (torch.arange(length) < lengths[:, None]).long()


def warp_vocal_tract(features: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The features (M, T) as from a longer or shorter vocal tract, formants moved by up to VOCAL_TRACT_WARP.

    A few dozen voices are then heard as many more (VTLP, Jaitly and Hinton 2013).
    """
    top = hertz_to_mel(SAMPLING_RATE_HZ / 2, mel_scale="slaney")
    bins = np.arange(1, MEL_BINS + 1) * top / (MEL_BINS + 1)
    warped = mel_to_hertz(bins, mel_scale="slaney") * rng.uniform(1 - VOCAL_TRACT_WARP, 1 + VOCAL_TRACT_WARP)
    source = hertz_to_mel(warped, mel_scale="slaney") * (MEL_BINS + 1) / top - 1
    position = torch.from_numpy(source).clamp(0, MEL_BINS - 1).float()
    below = position.long().clamp(max=MEL_BINS - 2)
    return torch.lerp(features[below], features[below + 1], (position - below)[:, None])


def mask_spectrogram(features: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The features (M, T) with two mel bands and two moments hidden (SpecAugment, Park et al. 2019)."""
    features = features.clone()
    for _ in range(2):
        band, moment = rng.randrange(MEL_BINS - 10), rng.randrange(features.shape[1])
        features[band : band + rng.randrange(10)] = 0
        features[:, moment : moment + rng.randrange(6)] = 0
    return features
