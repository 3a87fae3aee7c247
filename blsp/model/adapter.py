"""The modality adapter: the only part that is trained.

Axes: B utterances, S encoder frames, A adapter frames, E encoder width, D LLM width.
"""

from itertools import pairwise

import torch
from torch import nn


def adapter_length(frames: int, conv_layers: int) -> int:
    """The adapter frames A that `frames` encoder frames become: floor((L - 1) / 2) + 1 a convolution.

    100 frames through 3 layers: 100 -> 50 -> 25 -> 13.
    """
    for _ in range(conv_layers):
        frames = (frames - 1) // 2 + 1
    return frames


class ModalityAdapter(nn.Module):
    """Strided convolutions with GLU, a residual bottleneck and a LayerNorm (paper, section 3.2).

    Three layers make 50 encoder frames a second into 6.25 vectors a second of the LLM's width.
    47,467,520 parameters for Whisper-small (E 768) and Llama-2-7B (D 4096) at bottleneck 512.
    """

    def __init__(self, encoder_width: int, llm_width: int, conv_layers: int, kernel: int, bottleneck: int) -> None:
        super().__init__()
        widths = [encoder_width] * conv_layers + [llm_width]
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


def _zero_beyond(frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    valid = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
    return frames * valid[..., None].to(frames.dtype)
