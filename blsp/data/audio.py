"""Samples from files: decoded, mixed to mono, brought to one rate. (N samples, C channels)"""

import functools
import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsp.data import places
from blsp.data.records import Unusable, Utterance

if TYPE_CHECKING:
    from cloudpathlib import S3Path

# A segment may end this much after its file: manifests round, and mp3 headers only estimate their length.
END_TOLERANCE_S = 0.1
# Read before a segment and thrown away: an mp3 frame borrows bits from those before it, and a decoder sent
# into the middle gives silence until it has them (up to 0.3 s seen, in quiet files of variable rate).
LEAD_IN_S = 1
# Recorders know none outside; a broken header does, and to resample from 2 GHz would take 500 GB.
LOWEST_HZ, HIGHEST_HZ = 4_000, 384_000
UNKNOWN_SIZE = 0x7FFF0000  # from here on a header's size is a placeholder, of a file that was piped

# What libsndfile has to say of a file that ends before its header's or container's end; otherwise it reads on.
_TOO_SHORT = re.compile(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NO_LAST_PAGE = re.compile(r"Ogg ?: (?:Junk after the last page|File ended unexpectedly|Last page lacks)")
_NIST_SAMPLES = re.compile(rb"sample_count -i (\d+)")


def load(utterance: Utterance, sampling_rate_hz: int, max_duration_s: float = math.inf) -> NDArray[np.float32]:
    """The utterance's samples, float32 (N,), mono, at `sampling_rate_hz`. Raises what `decode` raises."""
    if not callable(utterance.audio):
        samples, rate = decode(utterance.audio, utterance.start_s, utterance.end_s, max_duration_s)
    else:
        waveform = utterance.audio()
        samples, rate = waveform.samples, waveform.sampling_rate_hz
        start, stop = _segment(samples.size, rate, utterance.start_s, utterance.end_s, max_duration_s)
        samples = _checked(samples[start:stop])
    return resample(samples, rate, sampling_rate_hz)


def decode(
    source: "bytes | Path | S3Path",
    start_s: float | None = None,
    end_s: float | None = None,
    max_duration_s: float = math.inf,
    channel: int | None = None,
) -> tuple[NDArray[np.float32], int]:
    """The samples of a wav, flac, mp3, ogg or opus file, float32 (N,), and their rate in Hz.

    Channels are averaged, unless one is named (from 0). Only the segment is decoded, and nothing of one longer
    than `max_duration_s`; from S3 the whole file is fetched. Raises Unusable: missing_file, unreadable,
    missing_channel, undecodable, bad_sampling_rate, empty_audio, not_finite, segment_outside_audio, too_long.
    """
    import soundfile

    name = "these bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes | Path):
        source = places.content(source)
    try:
        if isinstance(source, Path):
            _check_readable(source)
        with soundfile.SoundFile(source if isinstance(source, Path) else io.BytesIO(source)) as file:
            rate = file.samplerate
            if not LOWEST_HZ <= rate <= HIGHEST_HZ:
                raise Unusable("bad_sampling_rate", f"{name}: {rate} Hz; expected {LOWEST_HZ} to {HIGHEST_HZ}")
            if channel is not None and channel >= file.channels:
                raise Unusable("missing_channel", f"{name}: channel {channel} of {file.channels}, from 0")
            start, stop = _segment(file.frames, rate, start_s, end_s, max_duration_s)
            if stop == file.frames:
                _check_whole(file, source, name)
            lead_in = min(start, LEAD_IN_S * rate)
            file.seek(start - lead_in)
            samples = file.read(lead_in + stop - start, dtype="float32", always_2d=True)[lead_in:]  # (N, C)
    except (soundfile.SoundFileError, TypeError, OSError) as error:  # TypeError: .raw, which has no header
        raise Unusable("undecodable", f"{name}: {error}") from error
    if stop - start - len(samples) > END_TOLERANCE_S * rate:
        raise Unusable("undecodable", f"{name}: broken off after {len(samples)} of {stop - start} samples")
    if channel is None and samples.shape[1] > 1:
        return _checked(samples.mean(axis=1)), rate
    return _checked(samples[:, channel or 0]), rate


def resample(samples: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """The same sound at another rate: float32 (ceil(N * to_hz / from_hz),)."""
    if from_hz == to_hz:
        return samples
    from scipy.signal import resample_poly

    divisor = math.gcd(from_hz, to_hz)
    up, down = to_hz // divisor, from_hz // divisor
    return np.asarray(resample_poly(samples, up, down, window=_low_pass(up, down)), dtype=np.float32)


@functools.lru_cache(maxsize=16)
def _low_pass(up: int, down: int) -> NDArray[np.float32]:
    # 32 zero crossings a side and Kaiser 8.6: what would fold back is 85 dB down from 3 % above the edge on,
    # where scipy's own window (10 and 5.0) lets a third of the amplitude through.
    from scipy.signal import firwin

    widest = max(up, down)
    return np.asarray(firwin(2 * 32 * widest + 1, 0.94 / widest, window=("kaiser", 8.6)), dtype=np.float32)


def _segment(
    frames: int, rate: int, start_s: float | None, end_s: float | None, max_duration_s: float
) -> tuple[int, int]:
    if frames <= 0:
        raise Unusable("empty_audio", "holds no samples")
    duration_s = frames / rate
    begin_s, finish_s = start_s or 0.0, duration_s if end_s is None else end_s
    if begin_s >= duration_s or finish_s > duration_s + END_TOLERANCE_S:
        raise Unusable(
            "segment_outside_audio",
            f"segment {begin_s:g} to {finish_s:g} s, but the audio lasts {duration_s:.2f} s",
        )
    if finish_s - begin_s > max_duration_s:
        raise Unusable("too_long", f"{finish_s - begin_s:.2f} s, more than {max_duration_s:g} s")
    start, stop = round(begin_s * rate), min(round(finish_s * rate), frames)
    if start >= stop:
        raise Unusable("empty_audio", f"segment {begin_s:g} to {finish_s:g} s holds no samples")
    return start, stop


def _check_readable(path: Path) -> None:
    """Nothing. Raises Unusable: missing_file, unreadable; a pipe is not waited for."""
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no regular file" if path.exists() else "no such file"
            raise Unusable("missing_file", f"{path}: {found}")
        path.open("rb").close()
    except OSError as error:
        raise Unusable("unreadable", f"{path}: {error.strerror}") from error


def _check_whole(file: Any, source: bytes | Path, name: str) -> None:
    """Nothing. Raises Unusable (undecodable) where the end is missing, which libsndfile passes over in silence."""
    log, announced, found = file.extra_info, 0, 1
    if _NO_LAST_PAGE.search(log):
        raise Unusable(
            "undecodable",
            f"{name}: broken off, its last Ogg page is missing (`ffmpeg -i IN -c copy OUT` mends one that is whole)",
        )
    if sizes := _TOO_SHORT.search(log):
        announced, found = int(sizes[1]), int(sizes[2])
    elif file.format == "NIST" and (count := _NIST_SAMPLES.search(_beginning(source))):
        announced, found = int(count[1]), file.frames
    if announced < UNKNOWN_SIZE and (announced - found) * file.frames > END_TOLERANCE_S * file.samplerate * found:
        raise Unusable("undecodable", f"{name}: broken off, {found / announced:.0%} of it are here")


def _beginning(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return source[:1024]
    with source.open("rb") as stream:
        return stream.read(1024)


def _checked(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    bad = samples.size - np.count_nonzero(np.isfinite(samples))
    if bad:
        raise Unusable("not_finite", f"{bad} of {samples.size} samples are not finite")
    return np.ascontiguousarray(samples, dtype=np.float32)
