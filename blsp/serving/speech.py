"""Recordings as they arrive over the network, and the answers to them."""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from blsp.data.audio import decode, resample
from blsp.data.records import Unusable
from blsp.errors import BlspError

SAMPLING_RATE_HZ = 16_000


class RequestError(BlspError):
    """A request that cannot be answered; the message names the row, what was found and what would do."""


@dataclass(frozen=True)
class SpeechChat:
    """An adapter with its two backbones, ready to answer."""

    model: Any
    processor: Any

    @classmethod
    def load(cls, adapter: str | Path) -> Self:
        """The model of an adapter folder, on a GPU if there is one. Raises BlspError on other backbones."""
        import torch

        from blsp.model import BlspForConditionalGeneration, BlspProcessor

        model = BlspForConditionalGeneration.from_pretrained(Path(adapter)).eval()
        processor = BlspProcessor.from_pretrained(Path(adapter))
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), processor)

    def answer(self, encoded: list[str], instruction: str, max_new_tokens: int) -> list[str]:
        """One text for each recording (base64 of an audio file). Raises RequestError on the first bad row."""
        if not instruction.strip():
            raise RequestError("instruction is empty; say what to do, such as 'Repeat the following text.'")
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed")
        from blsp.model.chat import respond

        recordings = [read_recording(text, row) for row, text in enumerate(encoded)]
        return respond(self.model, self.processor, instruction, recordings, max_new_tokens) if recordings else []


def read_recording(encoded: str, row: int) -> NDArray[np.float32]:
    """The samples, float32 (N,), mono at 16 kHz, of a base64-encoded audio file. Raises RequestError."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise RequestError(f"row {row}: audio is not base64 ({error}); send base64 of a wav or flac file") from error
    try:
        samples, rate_hz = decode(content)
    except Unusable as error:
        raise RequestError(f"row {row}: {error} ({len(content)} bytes); send base64 of a wav or flac file") from error
    return resample(samples, rate_hz, SAMPLING_RATE_HZ)
