"""What the tests of the public corpora share: files that somebody speaks, and the packing of what was read."""

from pathlib import Path

import soundfile

from blsp.data import corpus, shards
from blsp.data.audio import resample
from blsp.data.drops import DROPPED, read_drops
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, speak
from blsp.params import load_params

REPO = Path(__file__).parents[3]
FORMATS = {
    ".flac": {"format": "FLAC", "subtype": "PCM_16"},
    ".wav": {"format": "WAV", "subtype": "PCM_16"},
    ".mp3": {"format": "MP3"},
    ".opus": {"format": "OGG", "subtype": "OPUS"},
    ".sph": {"format": "NIST", "subtype": "PCM_16"},
}


def spoken(path: Path, text: str, sampling_rate_hz: int = 16_000) -> None:
    """Nothing; `path`, in folders made for it, then holds the spoken text in the format its suffix names."""
    samples = resample(speak(text, "en-us", Prosody("f2", 180, 50, 50)).samples, SAMPLING_RATE_HZ, sampling_rate_hz)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sampling_rate_hz, **FORMATS[path.suffix])


def pack_all(settings, *reads, folder: str | Path = shards.CORPUS_DIR) -> dict:
    """The report of the stage `corpus` on what these functions read, with `dropped_rows`."""
    report = corpus.pack(reads, settings, load_params(REPO / "params.yaml").execution, folder)
    report["dropped_rows"] = list(read_drops(Path(folder) / DROPPED))
    return report


def packed(read, place: Path, folder: Path, **settings) -> dict:
    """The report of the stage `corpus` on one source, with `dropped_rows`; its shards are then in `folder`.

    Each row is accounted for.
    """
    params = load_params(REPO / "params.yaml")
    settings = params.corpus.model_copy(update=settings)
    report = pack_all(settings, lambda: read(place), folder=folder)
    ids = [row.id for row in read(place)]
    assert ids == [row.id for row in read(place)]
    assert len(ids) == report["rows_in"] == report["rows_kept"] + len(report["dropped_rows"])
    return report
