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

MULTILINGUAL_VOCABULARY = 51_865
"""Tokens of a Whisper of many languages, at least: by this OpenAI's own code tells it from one of English alone."""

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
    """For each row and its samples (N,): recogniser_disagrees, or None where it agrees.

    Both texts are compared as the corpus's normaliser leaves them; a transcript of which it leaves no word ("um") is
    not contradicted. Raises BlspError where there is no such recogniser.
    """
    import jiwer

    assert settings.recogniser is not None and settings.max_recogniser_wer is not None
    whisper = _load(settings.recogniser, settings.recogniser_revision)
    resampled = [audio.resample(clip, settings.sampling_rate_hz, whisper.extractor.sampling_rate) for clip in clips]
    found: list[Unusable | None] = []
    for row, written in zip(rows, recognise(whisper, resampled, [row.language for row in rows]), strict=True):
        normalizer = text.normalizer_of(row.language, settings.normalizer)
        said, words = (text.plain_words(one, normalizer) for one in (row.text, written))
        wer = jiwer.wer(said, words) if said else 0.0
        detail = f"word error rate {wer:.2f}, more than {settings.max_recogniser_wer:g}: {quoted(row.text)}"
        disagrees = wer > settings.max_recogniser_wer
        found.append(Unusable("recogniser_disagrees", f"{detail}, heard as {quoted(words)}") if disagrees else None)
    return found


def recognise(
    whisper: Whisper, clips: Sequence[NDArray[np.float32]], languages: Sequence[str | None] | None = None
) -> list[str]:
    """What the Whisper writes for each clip, float32 mono (N,) at its extractor's rate; longer audio by windows.

    A multilingual Whisper is told to transcribe, and the language of each clip where `languages` has one that it knows
    (de, de-CH, German); it finds out the others itself. An empty clip has no words.
    """
    size = whisper.extractor.n_samples
    known = languages_of(whisper)
    told = [known.get(primary(language)) for language in languages or [None] * len(clips)]
    texts: list[list[str]] = [[] for _ in clips]
    for language in dict.fromkeys(told):  # a batch is told one language, or none
        windows = [
            (row, clip[start : start + size])
            for row, clip in enumerate(clips)
            if told[row] == language
            for start in range(0, len(clip), size)
        ]
        for (row, _), words in zip(windows, _written(whisper, [w for _, w in windows], language), strict=True):
            texts[row].append(words.strip())
    return [" ".join(parts) for parts in texts]


def languages_of(whisper: Whisper) -> dict[str | None, str]:
    """The token of each language that the Whisper can be told, by its code; none where it knows English alone."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

    config, tokens = whisper.model.generation_config, whisper.tokenizer.get_vocab()
    says_so = hasattr(config, "lang_to_id") or whisper.model.config.vocab_size >= MULTILINGUAL_VOCABULARY
    if not getattr(config, "is_multilingual", says_so):
        return {}
    # Checkpoints that were converted by hand may leave these out; generate refuses to be told anything then.
    found = {f"<|{code}|>": tokens[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in tokens}
    config.is_multilingual = True
    config.lang_to_id = getattr(config, "lang_to_id", None) or found
    config.task_to_id = getattr(config, "task_to_id", None) or {
        task: tokens[f"<|{task}|>"] for task in TASK_IDS if f"<|{task}|>" in tokens
    }
    return {token[2:-2]: token for token in config.lang_to_id}


def _written(whisper: Whisper, windows: Sequence[NDArray[np.float32]], language: str | None) -> list[str]:
    import torch

    if not windows:
        return []
    extractor, model = whisper.extractor, whisper.model
    features = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features
    told = {"task": "transcribe"} if getattr(model.generation_config, "is_multilingual", False) else {}
    if language is not None:
        told["language"] = language
    with torch.inference_mode():
        tokens = model.generate(features.to(model.device, model.dtype), **told)
    return list(whisper.tokenizer.batch_decode(tokens, skip_special_tokens=True))


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
