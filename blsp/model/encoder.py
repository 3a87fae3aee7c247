"""Whisper's encoder run at the length of the audio, instead of on a window of 30 s of mostly silence.

Axes: C clips, W windows, M mel bins, T mel frames (100 a second), S encoder frames (50 a second), E encoder width.
"""

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder


def encoder_length(mel_frames: int) -> int:
    """The encoder frames S that `mel_frames` become in Whisper's stride-2 convolution: ceil(T / 2)."""
    return (mel_frames + 1) // 2


def encode(encoder: WhisperEncoder, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The encoder frames (W, S, E) of mel features (W, M, T) whose valid frames `mask` (W, T) marks with 1.

    Padding is exactly inert: it is zero at each convolution and hidden from attention, so a window's valid
    frames do not depend on what else is in the batch. Frames beyond a window's length are undefined.
    `encoder.forward` differs in that it wants the whole window and attends to its padding. Every attention back
    end of the encoder serves. Raises ValueError where the features are longer than the encoder's window.
    """
    frames = encoder_length(features.shape[-1])
    if frames > encoder.config.max_source_positions:
        raise ValueError(
            f"{features.shape[-1]} mel frames do not fit the encoder's window of "
            f"{2 * encoder.config.max_source_positions}; the processor cuts longer audio into windows"
        )
    mel_mask = mask[:, None].to(features.dtype)
    hidden = nn.functional.gelu(encoder.conv1(features * mel_mask)) * mel_mask
    hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[:frames]
    attention_mask = create_bidirectional_mask(
        config=encoder.config, inputs_embeds=hidden, attention_mask=mask[:, ::2].to(torch.long)
    )
    for layer in encoder.layers:
        hidden = layer(hidden, attention_mask)
    return encoder.layer_norm(hidden)


def split_windows(
    features: torch.Tensor, mask: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The windows of all clips in a row (W, M, T'), their masks (W, T') and the windows of each clip (C,).

    features (C, M, T) and mask (C, T) hold whole clips; they are cut every `window` mel frames, and windows past
    a clip's end are left out.
    """
    count = -(-features.shape[-1] // window)
    if count == 1:
        return features, mask, torch.ones(len(features), dtype=torch.long, device=features.device)
    missing = count * window - features.shape[-1]
    windows = nn.functional.pad(features, (0, missing)).unflatten(-1, (count, window)).transpose(1, 2)
    masks = nn.functional.pad(mask, (0, missing)).unflatten(-1, (count, window))
    is_used = masks[..., 0].bool()
    return windows[is_used], masks[is_used], is_used.sum(-1)


def join_windows(
    frames: torch.Tensor, frame_counts: torch.Tensor, windows_per_clip: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames of each clip in a row (C, S, E) and their counts (C,), from windows (W, S, E), counts (W,).

    `windows_per_clip` (C,) says how many consecutive windows belong to each clip.
    """
    pieces = [window[:count] for window, count in zip(frames, frame_counts.tolist(), strict=True)]
    clips, start = [], 0
    for count in windows_per_clip.tolist():
        clips.append(torch.cat(pieces[start : start + count]))
        start += count
    counts = torch.tensor([len(clip) for clip in clips], device=frames.device)
    return nn.utils.rnn.pad_sequence(clips, batch_first=True), counts
