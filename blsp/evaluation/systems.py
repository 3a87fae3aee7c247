"""The systems, each a function from an instruction and test items to answers."""

from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from blsp.backbones import load_llm, load_speech_model
from blsp.continuation.engine import write_answers
from blsp.evaluation.tasks import Item
from blsp.model.chat import build_prompt, respond
from blsp.params import Evaluate

System = Callable[[str, list[Item]], list[str]]


def text_system(settings: Evaluate) -> System:
    """The LLM reading the true transcript: the ceiling."""
    return _reader(settings, lambda item: item.transcript)


def cascade_system(settings: Evaluate, items: list[Item]) -> System:
    """The speech model's own transcript of each item, then the LLM reading it."""
    transcripts = transcribe([item.samples for item in items], settings.batch_size)
    by_id = {item.id: transcript for item, transcript in zip(items, transcripts, strict=True)}
    return _reader(settings, lambda item: by_id[item.id])


def speech_system(settings: Evaluate, model: Any, processor: Any) -> System:
    """The LLM hearing the speech through the model's adapter."""

    def answer(instruction: str, items: list[Item]) -> list[str]:
        answers = []
        for start in range(0, len(items), settings.batch_size):
            clips = [item.samples for item in items[start : start + settings.batch_size]]
            answers += respond(model, processor, instruction, clips, settings.max_new_tokens)
        return answers

    return answer


def _reader(settings: Evaluate, transcript_of: Callable[[Item], str]) -> System:
    model, tokenizer = load_llm()

    def answer(instruction: str, items: list[Item]) -> list[str]:
        prompts = [build_prompt(tokenizer, instruction, " " + transcript_of(item)) for item in items]
        written = dict(write_answers(model, tokenizer, prompts, settings.batch_size, settings.max_new_tokens))
        return [written[row].text for row in range(len(prompts))]

    return answer


@torch.inference_mode()
def transcribe(clips: list[Any], batch_size: int) -> list[str]:
    """What the whole speech model writes for each clip, float32 mono (N,); longer audio window by window."""
    model, extractor, tokenizer = load_speech_model()
    size = extractor.n_samples
    windows = [
        (row, clip[start : start + size]) for row, clip in enumerate(clips) for start in range(0, len(clip), size)
    ]
    texts: list[list[str]] = [[] for _ in clips]
    for start in tqdm(range(0, len(windows), batch_size), desc="recogniser", unit="batch"):
        part = windows[start : start + batch_size]
        features = extractor(
            [window for _, window in part], sampling_rate=extractor.sampling_rate, return_tensors="pt"
        ).input_features.to(model.device, model.dtype)
        written = tokenizer.batch_decode(model.generate(features), skip_special_tokens=True)
        for (row, _), text in zip(part, written, strict=True):
            texts[row].append(text.strip())
    return [" ".join(parts) for parts in texts]
