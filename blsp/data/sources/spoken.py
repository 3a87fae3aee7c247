"""Sentences that espeak-ng speaks, beside recordings of people: a JSONL file with one sentence a line.

    {"text": "What is the capital of France?", "split": "test", "answer": "Paris"}

`text` is required. `split` is train where it is not given; `answer`, `translation` and `intent` are for evaluation.
Each sentence has a voice, an accent, a rate, a pitch and, in train, a level of noise, drawn by its text alone. The
voices of dev and test are in no other split (`blsp.miniature.synthesis`).
"""

import hashlib
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from blsp.data.records import Row, Unusable, Utterance, Waveform, split_named
from blsp.data.sources.reading import from_lines, lines, shown
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, speak, voices_of

TEXTS = ("text", "split", "answer", "translation", "intent")
ACCENTS = ("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029")
SNR_DB = (None, 15.0, 20.0, 25.0, 30.0)


def read(path: Path) -> Iterator[Row]:
    """One utterance a line, in order. Reasons: not_json, missing_key, wrong_type, unknown_split.

    Raises BlspError where there is no such file.
    """
    yield from from_lines(path.name, lines(path), lambda line: [_utterance(line, path.name)])


def _utterance(line: bytes, source: str) -> Utterance:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unusable("not_json", str(error)) from error
    if not isinstance(fields, dict) or not fields.get("text"):
        raise Unusable("missing_key", "text is missing")
    known = {key: fields[key] for key in TEXTS if fields.get(key) is not None}
    for key, value in known.items():
        if not isinstance(value, str):
            raise Unusable("wrong_type", f"{key}: expected a string, found {shown(value)}")
    split = split_named(known.pop("split", "train"))
    if split is None:
        raise Unusable("unknown_split", f"split {fields['split']!r}; write train, dev or test")
    digest = hashlib.sha256(f"{split} {known['text']}".encode()).hexdigest()
    rng = random.Random(digest)
    prosody = Prosody(rng.choice(voices_of(split)), rng.randint(120, 190), rng.randint(30, 70), rng.randint(30, 75))
    accent, snr_db = rng.choice(ACCENTS), rng.choice(SNR_DB) if split == "train" else None
    return Utterance(
        id=f"spoken-{digest[:16]}",
        audio=partial(_waveform, known["text"], accent, prosody, snr_db),
        speaker=prosody.voice,
        language="en",
        split=split,
        licence="Apache-2.0",
        source=source,
        **known,
    )


def _waveform(text: str, accent: str, prosody: Prosody, snr_db: float | None) -> Waveform:
    samples = speak(text, accent, prosody).samples
    if snr_db is not None:
        noise = np.random.default_rng(len(samples)).standard_normal(len(samples)).astype(np.float32)
        noise = np.convolve(noise, (0.5, 0.3, 0.2), "same").astype(np.float32)  # darker than white
        gain = np.sqrt(np.square(samples).mean() / np.square(noise).mean()) * 10 ** (-snr_db / 20)
        samples = samples + np.float32(gain) * noise
    return Waveform(samples, SAMPLING_RATE_HZ)
