"""The modality adapters: the only part that is trained.

Axes: B utterances, S encoder frames, A adapter frames, E encoder width, D LLM width, K frames a speech vector.
"""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from blsp.model.configuration import BlspConfig


def adapter_length(frames: int, downsampling: int) -> int:
    """The speech vectors A that `frames` encoder frames become in either adapter: ceil(S / K).

    The paper's floor((L - 1) / 2) + 1 a convolution is the same: 100 -> 50 -> 25 -> 13 = ceil(100 / 8).
    """
    return -(-frames // downsampling)


def build_adapter(config: "BlspConfig") -> "ConvAdapter | StackAdapter":
    """A fresh adapter of the kind, widths and down-sampling that `config` asks for."""
    encoder_width, llm_width = config.audio_config.d_model, config.text_config.hidden_size
    if config.adapter == "stack":
        return StackAdapter(encoder_width, llm_width, config.downsampling, config.bottleneck)
    kind = WordAdapter if config.adapter == "word" else ConvAdapter
    return kind(encoder_width, llm_width, config.downsampling, config.conv_kernel, config.bottleneck)


class ConvAdapter(nn.Module):
    """Convolutions of stride 2 with GLU, a residual bottleneck and a LayerNorm (paper, section 3.2).

    `downsampling` 8 is the paper's three layers: 50 encoder frames a second become 6.25 vectors of the LLM's
    width. 47,467,520 parameters for Whisper-small (E 768) and Llama-2-7B (D 4096) at bottleneck 512.
    """

    def __init__(self, encoder_width: int, llm_width: int, downsampling: int, kernel: int, bottleneck: int) -> None:
        super().__init__()
        layers = downsampling.bit_length() - 1
        if downsampling < 2 or 2**layers != downsampling:
            raise ValueError(f"a conv adapter's downsampling is a power of two from 2 on; found {downsampling}")
        widths = [encoder_width] * layers + [llm_width]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, 2 * after, kernel, stride=2, padding=kernel // 2) for before, after in pairwise(widths)
        )
        self.down = nn.Linear(llm_width, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, llm_width, bias=False)
        self.norm = nn.LayerNorm(llm_width)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The speech vectors (B, A, D) and their counts (B,), from frames (B, S, E) and their counts (B,).

        Frames beyond a count are zeroed before each convolution, so an utterance gives the same vectors alone
        and in any batch.
        """
        hidden = _zero_beyond(frames, lengths).transpose(1, 2)
        for conv in self.convs:
            hidden = nn.functional.glu(conv(hidden), dim=1)
            lengths = (lengths - 1) // 2 + 1
            hidden = _zero_beyond(hidden.transpose(1, 2), lengths).transpose(1, 2)
        hidden = hidden.transpose(1, 2)
        hidden = hidden + self.up(nn.functional.gelu(self.down(hidden)))
        return self.norm(hidden), lengths


class WordAdapter(ConvAdapter):
    """A ConvAdapter whose vectors come at the pace of words, as blank removal in CTC gives them.

    A segmenter marks the vectors at which a word piece stands. They are moved to the end of the utterance's places,
    and all places before them hold one learned filler, so that the LLM reads words side by side, as it reads text,
    and an utterance of A places still gives exactly A vectors:

        conv      a b c d e f g
        marked    . 1 . . 1 1 .
        vectors   F F F F b e f

    The segmenter is trained by the warm start (`blsp.training.warm_start`) and fixed from then on: what the LLM says
    gives it no gradient. Source of the idea: Gaido et al. 2021, CTC-based compression for direct speech translation.
    """

    def __init__(self, encoder_width: int, llm_width: int, downsampling: int, kernel: int, bottleneck: int) -> None:
        super().__init__(encoder_width, llm_width, downsampling, kernel, bottleneck)
        self.out = nn.Linear(llm_width, llm_width)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.filler = nn.Parameter(torch.zeros(llm_width))
        widths = [encoder_width] + [bottleneck // 2] * len(self.convs)
        self.segmenter = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride=2, padding=kernel // 2) for before, after in pairwise(widths)
        )
        self.mark = nn.Conv1d(widths[-1], 1, kernel, padding=kernel // 2)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ConvAdapter.forward, the marked vectors last and the filler before them."""
        marked = self.mark_logits(frames, lengths) > 0
        hidden, lengths = self.vectors(frames, lengths)
        valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        marked = marked & valid
        # 0: filler, 1: a marked vector, 2: beyond the utterance.
        order = torch.where(valid, marked.long(), 2).argsort(dim=1, stable=True)
        is_filler = ~marked.gather(1, order) & valid
        hidden = hidden.gather(1, order[..., None].expand_as(hidden))
        return torch.where(is_filler[..., None], self.filler.to(hidden.dtype), hidden), lengths

    def fix_segmenter(self) -> None:
        """Train the segmenter no further."""
        self.segmenter.requires_grad_(False)
        self.mark.requires_grad_(False)

    def vectors(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The speech vectors (B, A, D) in the order of time, none left out, and their counts (B,)."""
        hidden, lengths = super().forward(frames, lengths)
        return self.out(hidden), lengths

    def mark_logits(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """For each speech vector (B, A) how sure the segmenter is that a word piece stands there: above 0 it does."""
        hidden = _zero_beyond(frames, lengths).transpose(1, 2)
        for conv in self.segmenter:
            lengths = (lengths - 1) // 2 + 1
            hidden = nn.functional.gelu(conv(hidden))
            hidden = _zero_beyond(hidden.transpose(1, 2), lengths).transpose(1, 2)
        return self.mark(hidden)[:, 0]


class StackAdapter(nn.Module):
    """K frames side by side through a SwiGLU MLP between two norms, as Ultravox joins Whisper to an LLM.

    Source: github.com/fixie-ai/ultravox, ultravox/model/ultravox_model.py, UltravoxProjector.
    """

    def __init__(self, encoder_width: int, llm_width: int, downsampling: int, bottleneck: int) -> None:
        super().__init__()
        self.downsampling = downsampling
        self.norm_in = nn.RMSNorm(encoder_width * downsampling)
        self.gate_up = nn.Linear(encoder_width * downsampling, 2 * bottleneck, bias=False)
        self.down = nn.Linear(bottleneck, llm_width, bias=False)
        self.norm = nn.RMSNorm(llm_width)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ConvAdapter.forward. The last vector of an utterance has zeros where its frames run out."""
        missing = -frames.shape[1] % self.downsampling
        frames = nn.functional.pad(_zero_beyond(frames, lengths), (0, 0, 0, missing))
        stacked = frames.unflatten(1, (-1, self.downsampling)).flatten(2)
        gate, up = self.gate_up(self.norm_in(stacked)).chunk(2, dim=-1)
        hidden = self.down(nn.functional.silu(gate) * up)
        return self.norm(hidden), (lengths + self.downsampling - 1) // self.downsampling


def _zero_beyond(frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    valid = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
    return frames * valid[..., None].to(frames.dtype)
