import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from blsp.data.audio import decode, load, resample
from blsp.data.records import Unusable, Utterance, Waveform

RATE_HZ = 16_000


def tone(duration_s=1.0, rate_hz=RATE_HZ, frequency_hz=440.0, amplitude=0.5):
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def level_at(samples, rate_hz, frequency_hz):
    """The amplitude of one frequency, measured away from the edges."""
    middle = samples[samples.size // 4 : samples.size * 3 // 4]
    time_s = np.arange(middle.size) / rate_hz
    weights = np.hanning(middle.size)
    return 2 * abs(np.sum(weights * middle * np.exp(-2j * np.pi * frequency_hz * time_s))) / weights.sum()


def reason_of(source, *segment, **limits):
    with pytest.raises(Unusable) as caught:
        decode(source, *segment, **limits)
    return caught.value.reason


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 1e-4),
        ("a.flac", "PCM_16", 1e-4),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
        ("a.ogg", "VORBIS", 0.05),
        ("a.opus", "OPUS", 0.05),
    ],
)
def test_every_format_decodes_whole_and_by_segment(tmp_path, name, subtype, tolerance):
    samples = tone(3.0)
    path = tmp_path / name
    container = "OGG" if name.endswith(("ogg", "opus")) else None
    soundfile.write(path, samples, RATE_HZ, format=container, subtype=subtype)

    whole, rate_hz = decode(path)
    assert (rate_hz, whole.shape, whole.dtype) == (RATE_HZ, (3 * RATE_HZ,), np.float32)
    inner = slice(1000, -1000)
    assert np.abs(whole[inner] - samples[inner]).max() < tolerance
    assert np.array_equal(decode(path.read_bytes())[0], whole)

    for start_s, end_s in ((0.5, 1.25), (2.0, 2.75)):
        segment, _ = decode(path, start_s, end_s)
        assert segment.shape == (0.75 * RATE_HZ,)
        assert np.allclose(segment, whole[int(start_s * RATE_HZ) : int(end_s * RATE_HZ)], atol=1e-6)


def test_segments_of_mp3_with_variable_rate_begin_with_sound(tmp_path):
    samples = tone(4.0)
    soundfile.write(tmp_path / "a.mp3", samples, RATE_HZ, bitrate_mode="VARIABLE", compression_level=0.5)
    whole, _ = decode(tmp_path / "a.mp3")
    for start in range(3 * RATE_HZ // 2, 3 * RATE_HZ, 3001):
        segment, _ = decode(tmp_path / "a.mp3", start / RATE_HZ, start / RATE_HZ + 0.5)
        assert np.allclose(segment, whole[start : start + RATE_HZ // 2], atol=1e-6), start


def test_channels_are_averaged(tmp_path):
    left, right = tone(frequency_hz=300), tone(frequency_hz=700)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE_HZ, subtype="FLOAT")
    assert np.allclose(decode(tmp_path / "a.wav")[0], (left + right) / 2, atol=1e-7)


def test_a_segment_may_end_a_little_after_the_file_but_not_more(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE_HZ)
    assert decode(tmp_path / "a.wav", 0.5, 1.05)[0].size == RATE_HZ // 2
    assert reason_of(tmp_path / "a.wav", 0.5, 1.2) == "segment_outside_audio"
    assert reason_of(tmp_path / "a.wav", 1.0) == "segment_outside_audio"
    assert reason_of(tmp_path / "a.wav", 7.0, 8.0) == "segment_outside_audio"


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(2.0), RATE_HZ)
    assert reason_of(tmp_path / "a.wav", max_duration_s=1.5) == "too_long"
    assert decode(tmp_path / "a.wav", 0.0, 1.5, max_duration_s=1.5)[0].size == 1.5 * RATE_HZ


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.opus", "a.raw"])
@pytest.mark.parametrize("content", [b"", b"not audio " * 500, bytes(range(256)) * 20])
def test_undecodable_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert reason_of(tmp_path / name) == "undecodable"


def test_broken_off_files_are_not_taken_for_whole(tmp_path):
    for name in ("a.flac", "a.mp3"):
        soundfile.write(tmp_path / name, tone(3.0), RATE_HZ)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        assert reason_of(tmp_path / name) == "undecodable", name


def test_missing_empty_and_not_finite_audio(tmp_path):
    assert reason_of(tmp_path / "nowhere.wav") == "missing_file"
    assert reason_of(tmp_path) == "missing_file"
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE_HZ)
    assert reason_of(tmp_path / "empty.wav") == "empty_audio"
    for bad in (np.nan, np.inf):
        samples = tone()
        samples[100] = bad
        soundfile.write(tmp_path / "bad.wav", samples, RATE_HZ, subtype="FLOAT")
        assert reason_of(tmp_path / "bad.wav") == "not_finite"
    assert decode(tmp_path / "bad.wav", 0.5)[0].size == RATE_HZ // 2


@pytest.mark.parametrize("from_hz", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("duration_s", [0.3, 1.0])
def test_resampling_keeps_length_and_tone(from_hz, duration_s):
    samples = tone(duration_s, from_hz, frequency_hz=1000)
    resampled = resample(samples, from_hz, RATE_HZ)
    assert resampled.dtype == np.float32
    assert resampled.size == math.ceil(samples.size * RATE_HZ / from_hz)
    expected = tone(resampled.size / RATE_HZ, frequency_hz=1000)
    inner = slice(1000, -1000)
    assert np.abs(resampled[inner] - expected[inner]).max() < 1e-3


def test_resampling_lets_nothing_fold_back():
    folding = resample(tone(1.0, 44_100, frequency_hz=9_000), 44_100, RATE_HZ)
    assert level_at(folding, RATE_HZ, 16_000 - 9_000) < 1e-4
    kept = resample(tone(1.0, 44_100, frequency_hz=6_500), 44_100, RATE_HZ)
    assert level_at(kept, RATE_HZ, 6_500) == pytest.approx(0.5, rel=0.01)


def test_resampling_to_the_same_rate_changes_nothing():
    samples = tone()
    assert resample(samples, RATE_HZ, RATE_HZ) is samples


def test_load_takes_files_and_functions_alike(tmp_path):
    samples = tone(1.0, 8_000)
    soundfile.write(tmp_path / "a.wav", samples, 8_000, subtype="FLOAT")

    def from_(audio, **fields) -> Utterance:
        return Utterance(id="a", audio=audio, text="a", source="test", **fields)

    def make() -> Waveform:
        return Waveform(samples, 8_000)

    for fields in ({}, {"start_s": 0.25, "end_s": 0.75}):
        of_file = load(from_(tmp_path / "a.wav", **fields), RATE_HZ)
        assert np.array_equal(of_file, load(from_(make, **fields), RATE_HZ))
        assert of_file.size == RATE_HZ * (0.5 if fields else 1)
    with pytest.raises(Unusable) as caught:
        load(from_(lambda: Waveform(np.zeros(0, np.float32), 8_000)), RATE_HZ)
    assert caught.value.reason == "empty_audio"
    with pytest.raises(Unusable) as caught:
        load(from_(Path(tmp_path / "a.wav")), RATE_HZ, max_duration_s=0.5)
    assert caught.value.reason == "too_long"


def test_decode_reads_a_stream_with_no_name():
    stream = io.BytesIO()
    soundfile.write(stream, tone(), RATE_HZ, format="FLAC")
    assert decode(stream.getvalue())[0].size == RATE_HZ
