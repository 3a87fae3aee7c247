"""Whether a recogniser hears what a row's transcript says: an optional filter of the corpus. (N samples)

The recogniser is a Whisper of `params.yaml`: a folder, or a checkpoint of the hub at a pinned commit.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blsp.data import audio, text
from blsp.data.records import Unusable, Utterance, quoted
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.languages import primary
from blsp.params import Corpus

BATCH = 16
"""Rows that are recognised at once."""

LOCAL_REMEDY = "name a folder with a Whisper in it, or set corpus.recogniser_revision for one of the hub"


class Whisper(NamedTuple):
    """A whole Whisper in evaluation mode, and what stands before and behind it."""

    model: Any
    extractor: Any
    tokenizer: Any


def digest(settings: Corpus) -> str | None:
    """What tells the recogniser from any other: its files' SHA-256, or its commit on the hub; None without one.

    Raises BlspError where its folder is missing.
    """
    if settings.recogniser is None or settings.recogniser_revision:
        return settings.recogniser_revision
    return _digest(settings.recogniser)


def faults(rows: Sequence[Utterance], clips: Sequence[NDArray[np.float32]], settings: Corpus) -> list[Unusable | None]:
    """For each row, its transcript normalised, and its samples (N,): recogniser_disagrees, or None where it agrees.

    Both texts are compared as the corpus's normaliser leaves them. Raises BlspError where there is no such recogniser.
    """
    import jiwer

    assert settings.recogniser is not None and settings.max_recogniser_wer is not None
    whisper = _load(settings.recogniser, settings.recogniser_revision)
    heard = [""] * len(rows)
    languages = [_token(whisper, row.language) for row in rows]
    for language in dict.fromkeys(languages):  # a batch is told one language
        chosen = [at for at, other in enumerate(languages) if other == language]
        resampled = [
            audio.resample(clips[at], settings.sampling_rate_hz, whisper.extractor.sampling_rate) for at in chosen
        ]
        for at, words in zip(chosen, recognise(whisper, resampled, language), strict=True):
            heard[at] = text.plain_words(words, text.normalizer_of(rows[at].language, settings.normalizer))
    found: list[Unusable | None] = []
    for row, words in zip(rows, heard, strict=True):
        wer = jiwer.wer(row.text, words)
        detail = f"word error rate {wer:.2f}, more than {settings.max_recogniser_wer:g}: {quoted(row.text)}"
        disagrees = wer > settings.max_recogniser_wer
        found.append(Unusable("recogniser_disagrees", f"{detail}, heard as {quoted(words)}") if disagrees else None)
    return found


def recognise(whisper: Whisper, clips: Sequence[NDArray[np.float32]], language: str | None = None) -> list[str]:
    """What the Whisper writes for each clip, float32 mono (N,) at its extractor's rate; longer audio by windows.

    `language` is its token, <|en|>; without one a multilingual Whisper finds out itself.
    """
    import torch

    size = whisper.extractor.n_samples
    windows = [
        (row, clip[start : start + size]) for row, clip in enumerate(clips) for start in range(0, len(clip), size)
    ]
    features = whisper.extractor(
        [window for _, window in windows], sampling_rate=whisper.extractor.sampling_rate, return_tensors="pt"
    ).input_features
    told = {} if language is None else {"language": language, "task": "transcribe"}
    with torch.inference_mode():
        tokens = whisper.model.generate(features.to(whisper.model.device), **told)
    texts: list[list[str]] = [[] for _ in clips]
    for (row, _), words in zip(windows, whisper.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
        texts[row].append(words.strip())
    return [" ".join(parts) for parts in texts]


def _token(whisper: Whisper, language: str | None) -> str | None:
    """The Whisper's token for a row's language, where it has one."""
    token = f"<|{primary(language)}|>"
    return token if token in getattr(whisper.model.generation_config, "lang_to_id", {}) else None


@functools.cache
def _digest(folder: str) -> str:
    if not Path(folder).is_dir():
        raise BlspError(f"corpus.recogniser: {folder}: no such folder; {LOCAL_REMEDY}")
    return sha256_of(folder)


@functools.cache
def _load(name: str, revision: str | None) -> Whisper:
    import torch
    from transformers import AutoConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    if not revision:
        _digest(name)
    try:
        kind = AutoConfig.from_pretrained(name, revision=revision).model_type
        if kind != "whisper":
            raise BlspError(f"corpus.recogniser: {name} is a {kind}; {LOCAL_REMEDY}")
        model, found = WhisperForConditionalGeneration.from_pretrained(
            name, revision=revision, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        extractor = WhisperFeatureExtractor.from_pretrained(name, revision=revision)
        tokenizer = WhisperTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        if isinstance(error, BlspError):
            raise
        at = f" at {revision}" if revision else ""
        raise BlspError(f"corpus.recogniser: {name}{at} cannot be loaded ({error}); {LOCAL_REMEDY}") from error
    if found["missing_keys"]:
        raise BlspError(f"corpus.recogniser: {name} lacks weights, such as {min(found['missing_keys'])}; copy it again")
    model.requires_grad_(False).eval()
    return Whisper(model.to("cuda" if torch.cuda.is_available() else "cpu"), extractor, tokenizer)
