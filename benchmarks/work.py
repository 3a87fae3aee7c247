"""The floating-point operations of a training step, counted from shapes: two for each multiply and add of a matrix.

What a frozen LLM needs: one forward, and a backward to its inputs, none to its weights. Attention is counted as a
causal kernel computes it, half of the square, and all of what was read before. Elementwise operations are left out, as
torch's counter leaves them.

Axes: S encoder frames, A adapter frames, L tokens, E encoder width, D LLM width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.recipes import spoken_positions
from benchmarks.workload import Utterance
from blsp.model import BlspConfig
from blsp.model.adapter import adapter_length


@dataclass(frozen=True)
class Work:
    """FLOPs of a step by part."""

    encoder: int
    adapter: int
    llm: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.encoder + self.adapter + self.llm + self.attention + self.head

    def __add__(self, other: "Work") -> "Work":
        return Work(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def step_work(
    config: BlspConfig,
    windows: Sequence[int],
    clips: Sequence[int],
    rows: Sequence[int],
    logits: int,
    passes: int = 2,
    before: int = 0,
) -> Work:
    """What one batch takes: encoder windows of S frames, clips of S frames for the adapter, LLM rows of L tokens.

    `logits` is the number of positions at which they are made; `passes` is 2 with the backward to the LLM's inputs,
    1 without (a teacher); `before` are the tokens whose keys are known, to which each row attends.
    """
    return Work(
        encoder=sum(encoder_flops(config, frames) for frames in windows),
        adapter=sum(adapter_flops(config, frames) for frames in clips),
        llm=2 * passes * llm_parameters(config) * sum(rows),
        # Two products of L x (L + before) a layer forward, four backward.
        attention=sum(
            (2 if passes == 1 else 6) * config.text_config.num_hidden_layers * _square(config, r, before) for r in rows
        ),
        head=2 * passes * config.text_config.vocab_size * config.text_config.hidden_size * logits,
    )


def our_work(config: BlspConfig, micro: Sequence[Utterance], padded: bool) -> Work:
    """Of our step under `ce`: of the real positions alone, or with the padding that is computed too."""
    frames = [u.frames for u in micro]
    rows = [spoken_positions(u, config.downsampling) for u in micro]
    if padded:
        frames, rows = [max(frames)] * len(frames), [max(rows)] * len(rows)
    return step_work(config, frames, frames, rows, sum(len(u.response) for u in micro), before=len(micro[0].prefix))


def teacher_work(config: BlspConfig, micro: Sequence[Utterance]) -> Work:
    """What a live teacher adds to the step: a forward of what is read after the prefix, and its logits."""
    rows = [len(u.transcript) + len(u.closing) + len(u.response) for u in micro]
    targets, before = sum(len(u.response) for u in micro), len(micro[0].prefix)
    return step_work(config, [], [], [max(rows)] * len(rows), targets, passes=1, before=before)


def published_work(config: BlspConfig, batch: Sequence[Utterance]) -> Work:
    """Of the published recipe's step, with all padding."""
    window = config.audio_config.max_source_positions
    longest = min(max(u.frames for u in batch), window)
    suffix = max(len(u.closing) + len(u.response) for u in batch)
    length = max(len(u.prefix) for u in batch) + adapter_length(longest, config.downsampling) + suffix
    count = len(batch)
    return step_work(config, [window] * count, [longest] * count, [length] * count, count * length)


def encoder_flops(config: BlspConfig, frames: int) -> int:
    """One forward of the encoder on a window of S frames: two convolutions of kernel 3, then its layers."""
    audio = config.audio_config
    width, layers = audio.d_model, audio.encoder_layers
    convolutions = 3 * width * (audio.num_mel_bins * 2 * frames + width * frames)
    layer = (4 * width**2 + 2 * width * audio.encoder_ffn_dim) * frames + 2 * width * frames**2
    return 2 * (convolutions + layers * layer)


def adapter_flops(config: BlspConfig, frames: int) -> int:
    """Forward and backward of the paper's adapter on a clip of S frames; nothing flows back to the encoder."""
    width, llm_width = config.audio_config.d_model, config.text_config.hidden_size
    layers = config.downsampling.bit_length() - 1
    total = 0
    for layer in range(layers):
        frames = adapter_length(frames, 2)
        channels = 2 * (llm_width if layer == layers - 1 else width)
        total += (2 if layer == 0 else 3) * 2 * config.conv_kernel * width * channels * frames
    return total + 3 * 2 * 2 * llm_width * config.bottleneck * frames


def llm_parameters(config: BlspConfig) -> int:
    """Those of the matrices that each position passes: no embeddings, no head."""
    text = config.text_config
    heads = text.num_attention_heads + text.num_key_value_heads
    attention = 2 * text.hidden_size * heads * text.head_dim
    return text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)


def encoder_parameters(config: BlspConfig) -> int:
    """Those of the encoder's matrices."""
    audio = config.audio_config
    layer = 4 * audio.d_model**2 + 2 * audio.d_model * audio.encoder_ffn_dim
    return audio.encoder_layers * layer + 3 * audio.d_model * (audio.num_mel_bins + audio.d_model)


def _square(config: BlspConfig, length: int, before: int) -> int:
    """One product of L x (L + before) with the heads' widths, less the half of L x L that is not causal."""
    text = config.text_config
    return length * (length + 2 * before) * text.num_attention_heads * text.head_dim
