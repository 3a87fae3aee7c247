"""Speech for small trees in the layouts of the corpora."""

from pathlib import Path

import soundfile

from blsp.data.audio import resample
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, speak

FORMATS = {
    ".flac": {"format": "FLAC", "subtype": "PCM_16"},
    ".wav": {"format": "WAV", "subtype": "PCM_16"},
    ".mp3": {"format": "MP3"},
    ".opus": {"format": "OGG", "subtype": "OPUS"},
}


def spoken(path: Path, text: str, sampling_rate_hz: int = 16_000) -> None:
    """Nothing; `path`, in folders made for it, then holds the spoken text in the format its suffix names."""
    samples = resample(speak(text, "en-us", Prosody("f2", 180, 50, 50)).samples, SAMPLING_RATE_HZ, sampling_rate_hz)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sampling_rate_hz, **FORMATS[path.suffix])
