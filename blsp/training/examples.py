"""From utterances to the two forwards of one step: the LLM reading the transcript, the LLM hearing the speech.

Axes: B utterances, C = B clips, S encoder frames, E encoder width, P prompt tokens, R response tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from blsp.model.chat import AUDIO_TOKEN, build_prompt
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.model.processing import BlspProcessor


@dataclass(frozen=True, eq=False)
class Example:
    """One utterance and what the LLM wrote from its transcript.

    `load_samples` gives its audio, float32 mono (N,) with N `num_samples`, and is called only when it is wanted;
    `response_ids` ends with the end token only where the LLM itself stopped, so that no end is learned from text
    that was cut.
    """

    id: str
    num_samples: int
    load_samples: Callable[[], np.ndarray]
    transcript: str
    instruction: str
    response_ids: Sequence[int]


@dataclass(frozen=True, eq=False)
class Prompted:
    """Prompts padded on the left to P, responses on the right to R, so that all responses start in one column.

    prompt  . . 4 5 6        ids (B, P + R), `.` is padding
    response      7 8 9 .    the logits at columns P - 1 to P + R - 2 predict the response
    """

    ids: torch.Tensor
    mask: torch.Tensor
    prompt_length: int

    def forward_arguments(self) -> dict[str, torch.Tensor]:
        """Mask, positions that count real tokens only, and the R columns where logits are wanted."""
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        last = self.ids.shape[1] - 1
        keep = torch.arange(self.prompt_length - 1, last, device=self.ids.device)
        return {"attention_mask": self.mask, "position_ids": positions, "logits_to_keep": keep}


@dataclass(frozen=True, eq=False)
class Batch:
    """The same responses after written and after spoken prompts.

    `responses` (B, R) and `is_response` (B, R) mark what is predicted; `frames` (B, S, E) and `frame_counts`
    (B,) are the encoder's, `audio_s` the seconds of audio in the batch.
    """

    ids: list[str]
    written: Prompted
    spoken: Prompted
    responses: torch.Tensor
    is_response: torch.Tensor
    frames: torch.Tensor
    frame_counts: torch.Tensor
    audio_s: float


class Collator:
    """Makes batches on the model's device, and remembers encoder frames up to `cache_bytes`.

    The encoder is frozen and a small corpus is seen many times over, so its frames are computed once.
    """

    def __init__(self, model: BlspForConditionalGeneration, processor: BlspProcessor, cache_bytes: int = 0) -> None:
        self.model, self.processor = model, processor
        self.room_bytes = cache_bytes
        self.cache: dict[str, torch.Tensor] = {}

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch of these examples, in their order."""
        processor = self.processor
        texts = [build_prompt(processor.tokenizer, e.instruction, " " + e.transcript) for e in examples]
        speech = []
        for example in examples:
            placeholder = processor.audio_token * processor.audio_token_count(example.num_samples)
            prompt = build_prompt(processor.tokenizer, example.instruction, AUDIO_TOKEN)
            speech.append(prompt.replace(AUDIO_TOKEN, placeholder))
        responses = [list(e.response_ids) for e in examples]
        longest = max(map(len, responses))
        is_response = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in responses]).bool()
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in responses])
        frames, counts = self._frames(examples)
        device = self.model.device
        return Batch(
            ids=[e.id for e in examples],
            written=self._prompted(texts, padded, is_response),
            spoken=self._prompted(speech, padded, is_response),
            responses=padded.to(device),
            is_response=is_response.to(device),
            frames=frames,
            frame_counts=counts,
            audio_s=sum(e.num_samples for e in examples) / processor.feature_extractor.sampling_rate,
        )

    def _prompted(self, prompts: list[str], responses: torch.Tensor, is_response: torch.Tensor) -> Prompted:
        encoded = self.processor.tokenizer(
            prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        )
        device = self.model.device
        return Prompted(
            ids=torch.cat([encoded.input_ids, responses], dim=1).to(device),
            mask=torch.cat([encoded.attention_mask, is_response.long()], dim=1).to(device),
            prompt_length=encoded.input_ids.shape[1],
        )

    def _frames(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        missing = [e for e in examples if e.id not in self.cache]
        fresh: dict[str, torch.Tensor] = {}
        if missing:
            features = self.processor.features([e.load_samples() for e in missing])
            frames, counts = self.model.encode_audio(**features)
            fresh = {e.id: frames[row, : int(counts[row])] for row, e in enumerate(missing)}
            for name, clip in fresh.items():
                if clip.nbytes <= self.room_bytes:
                    self.cache[name] = clip.clone()
                    self.room_bytes -= clip.nbytes
        clips = [fresh[e.id] if e.id in fresh else self.cache[e.id] for e in examples]
        counts = torch.tensor([len(clip) for clip in clips], device=self.model.device)
        return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), counts
