"""From utterances to the two forwards of one step: the LLM reading the transcript, the LLM hearing the speech.

Axes: B utterances, S encoder frames, E encoder width, L tokens, N tokens to predict in the batch, K most likely
tokens kept of the teacher's distribution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from blsp.model.chat import AUDIO_TOKEN, build_prompt
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.model.processing import BlspProcessor
from blsp.training.frames import FrameCache


@dataclass(frozen=True, eq=False)
class Example:
    """One utterance and what the LLM wrote from its transcript.

    `load_samples` gives its audio, float32 mono (N,) with N `num_samples`, and is called only when it is wanted;
    `response_ids` ends with the end token only where the LLM itself stopped, so
    that no end is learned from text that was cut. `top_ids` and `top_logprobs`, where they were stored, are the
    LLM's most likely tokens (response, K) at each place of the response and their log-probabilities.
    """

    id: str
    num_samples: int
    load_samples: Callable[[], np.ndarray]
    transcript: str
    instruction: str
    response_ids: Sequence[int]
    top_ids: Sequence[Sequence[int]] | None = None
    top_logprobs: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True, eq=False)
class Prompted:
    """Prompts with their responses, padded on the right, and where the response's tokens are predicted.

    4 5 6 7 8 9 .     ids (B, L): the prompt 4 5 6, the response 7 8 9, `.` is padding
        ^ ^ ^         predicts (B, L): the logits at these positions are for 7, 8, 9
    """

    ids: torch.Tensor
    mask: torch.Tensor
    predicts: torch.Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """The same responses after written and after spoken prompts, on the model's device.

    `targets` (N,) are the tokens to predict, utterance after utterance, and `utterance` (N,) says whose each is;
    `top_ids` and `top_logprobs` (N, K) are the stored teacher's, where there is one. `frames` (B, S, E) and
    `frame_counts` (B,) are the encoder's; `real` and `padded` count its work in LLM positions, without and with
    padding.
    """

    ids: list[str]
    written: Prompted
    spoken: Prompted
    targets: torch.Tensor
    utterance: torch.Tensor
    top_ids: torch.Tensor | None
    top_logprobs: torch.Tensor | None
    frames: torch.Tensor
    frame_counts: torch.Tensor
    audio_s: float
    real: int
    padded: int


class Collator:
    """Makes batches on the model's device. Frames of the frozen encoder are looked up in `cache` first."""

    def __init__(
        self, model: BlspForConditionalGeneration, processor: BlspProcessor, cache: FrameCache | None = None
    ) -> None:
        self.model, self.processor, self.cache = model, processor, cache

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch of these examples, in their order."""
        processor = self.processor
        texts = [build_prompt(processor.tokenizer, e.instruction, " " + e.transcript) for e in examples]
        speech = []
        for example in examples:
            placeholder = processor.audio_token * processor.audio_token_count(example.num_samples)
            prompt = build_prompt(processor.tokenizer, example.instruction, AUDIO_TOKEN)
            speech.append(prompt.replace(AUDIO_TOKEN, placeholder))
        frames, counts = self._frames(examples)
        device = self.model.device
        lengths = torch.tensor([len(e.response_ids) for e in examples])
        written, spoken = self._prompted(texts, examples), self._prompted(speech, examples)
        return Batch(
            ids=[e.id for e in examples],
            written=written,
            spoken=spoken,
            targets=torch.tensor([token for e in examples for token in e.response_ids], device=device),
            utterance=torch.repeat_interleave(torch.arange(len(examples)), lengths).to(device),
            top_ids=_stacked([e.top_ids for e in examples], torch.long, device),
            top_logprobs=_stacked([e.top_logprobs for e in examples], torch.float32, device),
            frames=frames,
            frame_counts=counts,
            audio_s=sum(e.num_samples for e in examples) / processor.feature_extractor.sampling_rate,
            real=int(spoken.mask.sum()) + int(counts.sum()),
            padded=spoken.mask.numel() + frames.shape[0] * frames.shape[1],
        )

    def _prompted(self, prompts: list[str], examples: Sequence[Example]) -> Prompted:
        encoded = self.processor.tokenizer(prompts, add_special_tokens=False).input_ids
        rows = [[*prompt, *e.response_ids] for prompt, e in zip(encoded, examples, strict=True)]
        longest = max(map(len, rows))
        predicts = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, (prompt, ids) in enumerate(zip(encoded, rows, strict=True)):
            predicts[row, len(prompt) - 1 : len(ids) - 1] = True
        device = self.model.device
        return Prompted(
            ids=_right_padded(rows).to(device),
            mask=_right_padded([[1] * len(ids) for ids in rows]).to(device),
            predicts=predicts.to(device),
        )

    def _frames(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        cached = [self.cache.get(e.id) if self.cache else None for e in examples]
        missing = [e for e, frames in zip(examples, cached, strict=True) if frames is None]
        fresh: list[torch.Tensor] = []
        if missing:
            features = self.processor.features([e.load_samples() for e in missing])
            frames, counts = self.model.encode_audio(**features)
            fresh = [clip[:count] for clip, count in zip(frames, counts.tolist(), strict=True)]
            if self.cache:
                for example, clip in zip(missing, fresh, strict=True):
                    self.cache.put(example.id, clip)
        unseen = iter(fresh)
        clips = [next(unseen) if known is None else known.to(self.model.device) for known in cached]
        lengths = torch.tensor([len(clip) for clip in clips], device=self.model.device)
        return pad_sequence(clips, batch_first=True), lengths


def _right_padded(rows: list[list[int]]) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def _stacked(
    rows: Sequence[Sequence[Sequence[float]] | None], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """All rows (response, K) one below the other (N, K); None where any is missing."""
    if any(row is None for row in rows):
        return None
    return torch.cat([torch.tensor(row, dtype=dtype) for row in rows]).to(device)
