"""The modality adapters: the only part that is trained.

All take the LLM's embeddings `words` with the frames; the WordAdapter alone uses them.

Axes: B utterances, S encoder frames, A adapter frames, E encoder width, D LLM width, K frames a speech vector, N speech
vectors, W words.
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


def build_adapter(config: "BlspConfig") -> "ConvAdapter | WordAdapter | StackAdapter":
    """A fresh adapter of the kind, widths and down-sampling that `config` asks for."""
    encoder_width, llm_width = config.audio_config.d_model, config.text_config.hidden_size
    if config.adapter == "stack":
        return StackAdapter(encoder_width, llm_width, config.downsampling, config.bottleneck)
    sizes = encoder_width, llm_width, config.downsampling, config.conv_kernel, config.bottleneck
    if config.adapter == "word":
        return WordAdapter(*sizes, config.text_config.get_text_config().vocab_size)
    return ConvAdapter(*sizes)


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

    def forward(
        self, frames: torch.Tensor, lengths: torch.Tensor, words: nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The speech vectors (B, A, D) and their counts (B,), from frames (B, S, E) and their counts (B,).

        Frames beyond a count are zeroed before each convolution, so an utterance gives the same vectors alone
        and in any batch.
        """
        return self.convolved(frames, lengths)

    def convolved(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `forward` of a ConvAdapter gives."""
        hidden = _zero_beyond(frames, lengths).transpose(1, 2)
        for conv in self.convs:
            hidden = nn.functional.glu(conv(hidden), dim=1)
            lengths = (lengths - 1) // 2 + 1
            hidden = _zero_beyond(hidden.transpose(1, 2), lengths).transpose(1, 2)
        hidden = hidden.transpose(1, 2)
        hidden = hidden + self.up(nn.functional.gelu(self.down(hidden)))
        return self.norm(hidden), lengths


class WordAdapter(ConvAdapter):
    """A ConvAdapter that gives the LLM its own words: the embedding expected of what was said, at the pace of words.

    The convolutions give 2 A vectors. A segmenter marks those at which a token stands, and of these alone the LLM gets
    the expected embedding: the mean of the known tokens' embeddings under P(token) = softmax(-sharpness * distance^2 /
    2), the distance being that of the vector to the token's embedding. Of neighbours at which the same token is the
    likeliest the first counts, as in CTC. They close the utterance, and one learned filler stands before them, so that
    the LLM reads words side by side, as it reads text, and there are still A vectors:

        convolved   a b c d e f g h i j
        marked      . 1 . . 1 1 . . . .
        vectors     F F b e f             F: filler; b, e, f: what is expected there

    Of speech faster than A tokens the end is lost. The warm start (`blsp.training.warm_start`) says which tokens are
    known and trains the segmenter; both are fixed from then on: what the LLM says gives the segmenter no gradient.
    Sources: Gaido et al. 2021, CTC-based compression for direct speech translation; Ma et al. 2025, LegoSLM.
    """

    known: torch.Tensor

    def __init__(
        self, encoder_width: int, llm_width: int, downsampling: int, kernel: int, bottleneck: int, vocabulary: int
    ) -> None:
        if downsampling < 4:
            raise ValueError(f"a word adapter's downsampling is a power of two from 4 on; found {downsampling}")
        super().__init__(encoder_width, llm_width, downsampling // 2, kernel, bottleneck)
        self.out = nn.Linear(llm_width, llm_width)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.filler = nn.Parameter(torch.zeros(llm_width))
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.register_buffer("known", torch.ones(vocabulary, dtype=torch.bool))
        widths = [encoder_width] + [bottleneck // 2] * len(self.convs)
        self.segmenter = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride=2, padding=kernel // 2) for before, after in pairwise(widths)
        )
        self.mark = nn.Conv1d(widths[-1], 1, kernel, padding=kernel // 2)

    def forward(
        self, frames: torch.Tensor, lengths: torch.Tensor, words: nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ConvAdapter.forward: the filler, and then the expected embeddings of the marked vectors."""
        if words is None:
            raise TypeError("a WordAdapter needs the LLM's embeddings: words")
        marked = self.mark_logits(frames, lengths) > 0
        hidden, lengths = self.vectors(frames, lengths)
        marked &= torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        likeliest, expected = self.read(hidden[marked], words)
        tokens = torch.full(marked.shape, -1, device=marked.device).masked_scatter(marked, likeliest)
        repeated = torch.zeros_like(marked)
        repeated[:, 1:] = marked[:, 1:] & (tokens[:, 1:] == tokens[:, :-1])
        kept = marked & ~repeated
        places, number = (lengths + 1) // 2, kept.cumsum(1)
        kept &= number <= places[:, None]
        row = kept.nonzero()[:, 0]
        at = number[kept] - 1 + (places - kept.sum(1))[row]
        vectors = self.filler.expand(len(frames), int(places.max()), -1).clone()
        vectors[row, at] = expected[kept[marked]].to(vectors.dtype)
        return vectors, places

    def fix_segmenter(self) -> None:
        """Train the segmenter no further."""
        self.segmenter.requires_grad_(False)
        self.mark.requires_grad_(False)

    def vectors(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The convolved vectors (B, about 2 A, D) in the order of time, and their counts (B,)."""
        hidden, lengths = self.convolved(frames, lengths)
        return self.out(hidden), lengths

    def mark_logits(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """At each convolved vector (B, about 2 A) how sure the segmenter is of a token there: above 0 it marks one."""
        hidden = _zero_beyond(frames, lengths).transpose(1, 2)
        for conv in self.segmenter:
            lengths = (lengths - 1) // 2 + 1
            hidden = nn.functional.gelu(conv(hidden))
            hidden = _zero_beyond(hidden.transpose(1, 2), lengths).transpose(1, 2)
        return self.mark(hidden)[:, 0]

    def read(self, vectors: torch.Tensor, words: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens (N,) at vectors (N, D), and the embeddings expected there (N, D)."""
        tokens = self.known.nonzero()[:, 0]
        known = words(tokens).detach().float()
        with torch.autocast(vectors.device.type, enabled=False):
            logits = nearness(vectors.float(), known, self.log_sharpness)
            return tokens[logits.argmax(-1)], logits.softmax(-1) @ known


def nearness(vectors: torch.Tensor, words: torch.Tensor, log_sharpness: torch.Tensor) -> torch.Tensor:
    """Logits (..., W) of words (W, D) at vectors (..., D): minus half their squared distance, times the sharpness.

    What all words share of it, the vector's own square, is left out.
    """
    return (vectors @ words.T - words.square().sum(-1) / 2) * log_sharpness.exp()


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

    def forward(
        self, frames: torch.Tensor, lengths: torch.Tensor, words: nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
