"""From utterances to the two forwards of one step: the LLM reading the transcript, the LLM hearing the speech.

Axes: B utterances, M mel bins, T mel frames, S encoder frames, E encoder width, L tokens, N tokens to predict in the
batch, K most likely tokens kept of the teacher's distribution, and K of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from blsp.model.chat import build_prompt, spoken_around
from blsp.model.processing import BlspProcessor
from blsp.model.responses import Prompted, prompted
from blsp.prompts import Prompt
from blsp.training.frames import FrameCache
from blsp.training.prefixes import NONE, Prefixes, prefix_number


@dataclass(frozen=True, eq=False)
class Example:
    """One utterance and what the LLM wrote from its transcript, asked in `prompt` (an instruction alone, or more).

    `load_samples` gives its audio, float32 mono (N,) with N `num_samples`, and is called only when it is wanted;
    `response_ids` ends with the end token only where the LLM itself stopped, so
    that no end is learned from text that was cut. `kept_ids` and `kept_logprobs`, where they were stored, are what is
    kept of the LLM's distribution at each place of the response: K most likely tokens, then K drawn from all others
    (response, 2K), and their log-probabilities at the training temperature, of what was drawn among those others.
    """

    id: str
    num_samples: int
    load_samples: Callable[[], np.ndarray]
    transcript: str
    prompt: Prompt | str
    response_ids: Sequence[int]
    kept_ids: Sequence[Sequence[int]] | None = None
    kept_logprobs: Sequence[Sequence[float]] | None = None


def with_others(examples: Sequence[Example]) -> list[Example]:
    """The same responses and prompts, each with the speech and transcript of another of these utterances.

    It is always the same one: the nearest in length that says something else; of two as near, the longer. An empty
    list where all say the same.
    """
    if len({example.transcript for example in examples}) < 2:
        return []
    order = sorted(range(len(examples)), key=lambda row: (examples[row].num_samples, examples[row].id))
    found = list(examples)
    for place, row in enumerate(order):
        own = examples[row]
        sides = (range(place + 1, len(order)), range(place - 1, -1, -1))
        others = ((examples[order[at]] for at in side) for side in sides)
        nearest = [next((one for one in side if one.transcript != own.transcript), None) for side in others]
        other = min(filter(None, nearest), key=lambda one: abs(one.num_samples - own.num_samples))
        found[row] = replace(other, prompt=own.prompt, response_ids=own.response_ids, kept_ids=None, kept_logprobs=None)
    return found


@dataclass(frozen=True, eq=False)
class Batch:
    """The same responses after written and after spoken prompts.

    `audio` is what the encoder still has to hear, as `BlspForConditionalGeneration.encode_audio` takes it:
    input_features (B, M, T) and input_features_mask (B, T); or, where all were known, its frames (B, S, E) and
    their counts (B,), as it gives them.
    `prefix` (B,) says which of the Collator's prefixes comes before each row.
    `targets` (N,) are the tokens to predict, utterance after utterance, and `utterance` (N,) says whose each is;
    `kept_ids` and `kept_logprobs` (N, 2K) are the stored teacher's, where there is one.
    """

    ids: list[str]
    written: Prompted
    spoken: Prompted
    prefix: torch.Tensor
    targets: torch.Tensor
    utterance: torch.Tensor
    kept_ids: torch.Tensor | None
    kept_logprobs: torch.Tensor | None
    audio: Mapping[str, torch.Tensor]
    audio_s: float

    def to(self, device: torch.device) -> Self:
        """This batch on a device."""
        return _moved(self, device)


class Collator:
    """Makes batches, on the CPU. Encoder frames are looked up in `cache`; what is not there is left to encode.

    Prompts that begin with one of `prefixes` are cut after it: the LLM has read it already.
    """

    def __init__(self, processor: BlspProcessor, cache: FrameCache | None = None, prefixes: Prefixes = NONE) -> None:
        self.processor, self.cache, self.prefixes = processor, cache, prefixes
        self._around = lru_cache(maxsize=None)(partial(spoken_around, processor.tokenizer))

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch of these examples, in their order."""
        processor = self.processor
        texts = [build_prompt(processor.tokenizer, e.prompt, e.transcript) for e in examples]
        written = processor.tokenizer(texts, add_special_tokens=False).input_ids
        spoken = []
        for example in examples:
            before, after = self._around(example.prompt)
            speech = [processor.audio_token_id] * processor.audio_token_count(example.num_samples)
            spoken.append([*before, *speech, *after])
        prefix = [prefix_number(self.prefixes, *pair) for pair in zip(written, spoken, strict=True)]
        cuts = [len(self.prefixes[number]) for number in prefix]
        responses = [e.response_ids for e in examples]
        lengths = torch.tensor([len(response) for response in responses])
        return Batch(
            ids=[e.id for e in examples],
            written=prompted([row[cut:] for row, cut in zip(written, cuts, strict=True)], responses),
            spoken=prompted([row[cut:] for row, cut in zip(spoken, cuts, strict=True)], responses),
            prefix=torch.tensor(prefix),
            targets=torch.tensor([token for e in examples for token in e.response_ids]),
            utterance=torch.repeat_interleave(torch.arange(len(examples)), lengths),
            kept_ids=_stacked([e.kept_ids for e in examples], torch.long),
            kept_logprobs=_stacked([e.kept_logprobs for e in examples], torch.float32),
            audio=self.audio(examples),
            audio_s=sum(e.num_samples for e in examples) / processor.feature_extractor.sampling_rate,
        )

    def audio(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """What the encoder still has to hear of these examples, or their frames: `Batch.audio`."""
        known = [self.cache.get(e.id) for e in examples] if self.cache else [None]
        clips = [frames for frames in known if frames is not None]
        if len(clips) < len(known):
            return self.processor.features([e.load_samples() for e in examples])
        return {"frames": pad_sequence(clips, batch_first=True), "counts": torch.tensor([len(clip) for clip in clips])}


def _moved(value: Any, device: torch.device) -> Any:
    """The value with all tensors in it on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, Batch | Prompted):
        return type(value)(**{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def _stacked(rows: Sequence[Sequence[Sequence[float]] | None], dtype: torch.dtype) -> torch.Tensor | None:
    """All rows (response, 2K) one below the other (N, 2K); None where any is missing."""
    if any(row is None for row in rows):
        return None
    return torch.cat([torch.tensor(row, dtype=dtype) for row in rows])
