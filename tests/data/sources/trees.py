"""What the tests of the public corpora share: files that somebody speaks, and the packing of what was read."""

from pathlib import Path

import soundfile

from blsp.data import corpus
from blsp.data.audio import resample
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, speak
from blsp.params import load_params

REPO = Path(__file__).parents[3]
FORMATS = {".sph": "NIST", ".opus": "OGG"}


def spoken(path: Path, text: str, sampling_rate_hz: int = 16_000) -> None:
    """The text, spoken by espeak-ng, as a file of the suffix's format; folders are made."""
    samples = resample(speak(text, "en", Prosody("f2", 185, 50, 50)).samples, SAMPLING_RATE_HZ, sampling_rate_hz)
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = "OPUS" if path.suffix == ".opus" else None
    soundfile.write(path, samples, sampling_rate_hz, format=FORMATS.get(path.suffix), subtype=subtype)


def packed(read, place: Path, folder: Path) -> dict:
    """The report of the stage `corpus` on one source, whose shards are then in `folder`; each row is accounted for."""
    settings = load_params(REPO / "params.yaml").corpus
    report = corpus.pack(lambda: read(place), settings, folder)
    ids = [row.id for row in read(place)]
    assert ids == [row.id for row in read(place)]
    assert len(ids) == report["rows_in"] == report["rows_kept"] + len(report["dropped_rows"])
    return report
