"""Whether a row's audio is fit to learn from: long enough for its text, neither silent nor clipped. (N samples)"""

import numpy as np
from numpy.typing import NDArray

from blsp.data.records import Unusable, quoted
from blsp.params import Corpus

FRAME_S = 0.025
QUIET_DB = -40.0  # below the loudest frame: room noise, and breath
FULL_SCALE = 0.999


def check_length(samples: NDArray[np.float32], text: str, settings: Corpus) -> None:
    """Nothing. Raises Unusable: too_short, too_long, too_few_chars_per_s, too_many_chars_per_s."""
    duration_s = samples.size / settings.sampling_rate_hz
    if duration_s < settings.min_duration_s:
        raise Unusable("too_short", f"{duration_s:.2f} s, less than {settings.min_duration_s:g} s")
    if duration_s > settings.max_duration_s:
        raise Unusable("too_long", f"{duration_s:.2f} s, more than {settings.max_duration_s:g} s")
    chars_per_s = spoken_chars(text) / duration_s
    found = f"{chars_per_s:.1f} characters/s, {quoted(text)} in {duration_s:.2f} s"
    if chars_per_s < settings.min_chars_per_s:
        raise Unusable("too_few_chars_per_s", f"{found}; less than {settings.min_chars_per_s:g}")
    if chars_per_s > settings.max_chars_per_s:
        raise Unusable("too_many_chars_per_s", f"{found}; more than {settings.max_chars_per_s:g}")


def spoken_chars(text: str) -> int:
    """How many characters the text has as it is spoken: a digit is a word of about four letters (`7`: seven)."""
    return len(text) + 3 * sum(character.isdigit() for character in text)


def check_sound(samples: NDArray[np.float32], settings: Corpus) -> None:
    """Nothing. Raises Unusable: silent, clipped."""
    if (share := silent_share(samples, settings.sampling_rate_hz)) > settings.max_silent_share:
        raise Unusable("silent", f"{share:.0%} of it is silence, more than {settings.max_silent_share:.0%}")
    if (share := clipped_share(samples)) > settings.max_clipped_share:
        raise Unusable("clipped", f"{share:.2%} of its samples are clipped, more than {settings.max_clipped_share:.2%}")


def silent_share(samples: NDArray[np.float32], sampling_rate_hz: int) -> float:
    """The share of frames of 25 ms that lie 40 dB or more below the loudest; 1 where all is zero."""
    length = max(round(FRAME_S * sampling_rate_hz), 1)
    frames = samples[: samples.size // length * length].reshape(-1, length) if samples.size >= length else samples[None]
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return float((power <= power.max() * 10 ** (QUIET_DB / 10)).mean())


def clipped_share(samples: NDArray[np.float32]) -> float:
    """The share of samples at full scale."""
    return float((np.abs(samples) >= FULL_SCALE).mean())
