import functools
import gzip
import json
import pickle
from importlib.metadata import version

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.cut import PaddingCut

from blsp.data import shards
from blsp.data.audio import load
from blsp.data.records import SPLITS, Dropped, Unusable, Utterance, Waveform
from blsp.data.sources.lhotse import read
from blsp.errors import BlspError
from blsp.params import load_params
from tests.data.sources.trees import pack_all, packed
from tests.trained import PARAMS

RATE_HZ = 8_000
VERSION = version("whisper-normalizer")


def noise(duration_s=2.0, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE_HZ))).astype(np.float32)


def recording(folder, name, *channels):
    """A wav file, one array a channel, as lhotse describes it."""
    path = folder / f"{name}.wav"
    soundfile.write(path, np.stack(channels or (noise(),), axis=1), RATE_HZ, subtype="FLOAT")
    return Recording.from_file(path)


def spoken(name, start_s=0.0, duration_s=1.0, text="turn on the light", **fields):
    return SupervisionSegment(name, "r", start_s, duration_s, text=text, **fields)


def cut(name, audio, *supervisions, start_s=0.0, duration_s=1.0, channel=0, **custom):
    return MonoCut(name, start_s, duration_s, channel, list(supervisions), recording=audio, custom=custom or None)


def write(path, *cuts):
    path.parent.mkdir(parents=True, exist_ok=True)
    CutSet.from_cuts(cuts).to_file(path)
    return path


def test_a_supervision_is_a_segment_of_its_file_with_all_that_is_known(tmp_path):
    audio = recording(tmp_path, "a")
    known = {"licence": "CC0-1.0", "translation": "Mach an", "answer": "light", "other": 5}
    first = spoken("s1", 0.25, 0.5, speaker="ann", language="en", custom={"intent": "on"})
    second = spoken("s2", 0.75, 0.25, text="off")
    path = write(tmp_path / "cuts.jsonl.gz", cut("c", audio, first, second, start_s=0.5, **known))

    one, two = read(path)
    expected = {
        "id": "s1",
        "audio": tmp_path / "a.wav",
        "text": "turn on the light",
        "speaker": "ann",
        "language": "en",
        "split": None,
        "start_s": 0.75,
        "end_s": 1.25,
        "licence": "CC0-1.0",
        "translation": "Mach an",
        "intent": "on",
        "answer": "light",
        "source": "cuts.jsonl.gz",
    }
    assert vars(one) == expected | {"ignored": ()}
    assert (two.id, two.text, two.start_s, two.end_s, two.intent) == ("s2", "off", 1.25, 1.5, None)
    assert np.array_equal(load(one, RATE_HZ), noise()[int(0.75 * RATE_HZ) : int(1.25 * RATE_HZ)])


def test_a_channel_is_read_alone(tmp_path):
    audio = recording(tmp_path, "call", noise(seed=1), noise(seed=2))
    path = write(tmp_path / "cuts.jsonl", cut("c", audio, spoken("s", 0.5, 0.5), start_s=0.25, channel=1))
    (row,) = read(path)
    expected = noise(seed=2)[int(0.75 * RATE_HZ) : int(1.25 * RATE_HZ)]
    assert np.array_equal(load(pickle.loads(pickle.dumps(row)), RATE_HZ), expected)  # noqa: S301


def test_paths_lead_from_the_manifest_else_from_the_working_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "there" / "cuts.jsonl", cut("c", recording(tmp_path, "a"), spoken("s")))
    path.write_text(path.read_text().replace(f"{tmp_path}/", ""))
    monkeypatch.chdir(tmp_path)
    assert str(next(read(path, tmp_path)).audio) == "a.wav"
    assert next(read(path)).reason == "bad_path"
    recording(tmp_path / "there", "a")
    assert next(read(path)).audio == tmp_path / "there" / "a.wav"


def test_shar_gives_the_same_sound(tmp_path):
    audio = recording(tmp_path, "call", noise(seed=1), noise(seed=2))
    cuts = [cut(f"deep/c.{n}", audio, spoken(f"s{n}", 0.25, 0.5), start_s=n / 10, channel=n % 2) for n in range(5)]
    (tmp_path / "shar" / "train-clean").mkdir(parents=True)
    fields = {"recording": "flac"}
    CutSet.from_cuts(cuts).to_shar(tmp_path / "shar" / "train-clean", fields=fields, shard_size=2)

    rows = list(read(tmp_path / "shar"))
    assert [(row.id, row.split) for row in rows] == [(f"s{n}", "train") for n in range(5)]
    for n in (4, 0, 1):  # of several shards, in any order
        start = round((n / 10 + 0.25) * RATE_HZ)
        expected = noise(seed=1 + n % 2)[start : start + RATE_HZ // 2]
        samples = load(pickle.loads(pickle.dumps(rows[n])), RATE_HZ)  # noqa: S301
        assert np.abs(samples - expected).max() <= 1 / 2**15

    tar = tmp_path / "shar" / "train-clean" / "recording.000001.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    assert reason_of(rows[3]) in ("undecodable", "missing_file")
    tar.unlink()
    assert reason_of(rows[0]) == ""
    assert reason_of(rows[3]) == "missing_file"


def reason_of(row):
    try:
        load(row, RATE_HZ)
    except Unusable as fault:
        return fault.reason
    return ""


def test_split_comes_from_the_cut_else_from_the_nearest_name(tmp_path):
    audio = recording(tmp_path, "a")
    write(tmp_path / "x" / "dev" / "cuts.jsonl", cut("1", audio, spoken("in-dev")))
    write(tmp_path / "x" / "dev" / "my_cuts_train-5.jsonl.gz", cut("2", audio, spoken("in-train")))
    named = cut("3", audio, spoken("named"), split="validation")
    write(tmp_path / "x" / "test.other" / "cuts.jsonl", named, cut("4", audio, spoken("in-test")))
    write(tmp_path / "x" / "zoo" / "cuts.jsonl", cut("5", audio, spoken("nowhere")))
    found = {row.id: row.split for row in read(tmp_path / "x", tmp_path)}
    expected = {"in-dev": "dev", "in-train": "train", "named": "dev", "in-test": "test", "nowhere": None}
    assert found == expected and list(found) == list(expected)


def test_every_cut_that_is_no_utterance_is_dropped_with_its_reason(tmp_path):
    audio = recording(tmp_path, "a")
    stereo = recording(tmp_path, "b", noise(), noise())

    def from_(kind, source="x"):
        return Recording("r", [AudioSource(kind, [0], source)], RATE_HZ, 2 * RATE_HZ, 2.0)

    good = cut("good", audio, spoken("good"))
    multi = MultiCut("m", 0, 1.0, [0, 1], [spoken("m", channel=[0, 1])], recording=stereo)
    rows = [
        (good, None),
        (cut("none", audio), "no_supervision"),
        (multi, "not_mono"),
        (cut("p", audio, spoken("p")).pad(duration=3), "not_mono"),
        (PaddingCut("q", 1.0, RATE_HZ, -23.0, num_samples=RATE_HZ), "not_a_cut"),
        (audio, "not_a_cut"),
        (cut("h", None, spoken("h")), "no_recording"),
        (cut("t", audio, spoken("t", text=None)), "missing_key"),
        (cut("i", audio, spoken("../up")), "bad_id"),
        (cut("s", audio, spoken("s", -0.5)), "bad_segment"),
        (cut("l", audio, spoken("l", 0.5, 0)), "bad_segment"),
        (cut("c", from_("command", "touch hacked"), spoken("c")), "unsupported_audio"),
        (cut("u", from_("url", "https://x"), spoken("u")), "unsupported_audio"),
        (cut("v", audio.perturb_speed(1.1), spoken("v")), "unsupported_audio"),
        (cut("k", audio, spoken("k"), channel=3), "unsupported_audio"),
    ]
    lines = [json.dumps(one.to_dict()) for one, _ in rows] + ["{half", "[1]", "", '{"type": "MonoCut"}']
    path = tmp_path / "cuts.jsonl"
    path.write_text("\n".join(lines))
    found = list(read(path))
    expected = [reason for _, reason in rows] + ["not_json", "not_a_cut", "not_a_cut"]
    assert [getattr(row, "reason", None) for row in found] == expected
    assert isinstance(found[0], Utterance) and found[0].id == "good"
    dropped = [row for row in found if isinstance(row, Dropped)]
    assert all(row.id.startswith("cuts.jsonl:") and row.detail for row in dropped)
    assert dropped[0].id == "cuts.jsonl:2" and dropped[-1].id == f"cuts.jsonl:{len(lines)}"


def test_every_supervision_is_packed_or_dropped(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    cuts = [
        cut(f"c{n}", recording(folder, f"{n}", noise(seed=n)), spoken(f"s{n}", text=f"open {name}"), split=name)
        for n, name in enumerate(SPLITS)
    ]
    audio = recording(folder, "a")
    train = functools.partial(cut, split="train")
    cuts += [train("none", audio), train("again", audio, spoken("s0", text="again"))]
    cuts += [train("noise", audio, spoken("n", text="[music]")), train("far", audio, spoken("b", 1.5, 3, text="far"))]
    cuts += [train("lost", recording(folder, "lost"), spoken("l", text="lost"))]
    cuts += [train("outside", recording(tmp_path, "outside"), spoken("o", text="outside"))]
    path = write(folder / "cuts.jsonl", *cuts)
    (folder / "lost.wav").unlink()
    with path.open("a") as stream:
        stream.write("{half\n")
    report = packed(read, path, tmp_path / "corpus")
    reasons = "no_supervision duplicate_id noise_only segment_outside_audio missing_file bad_path not_json"
    assert report["dropped"] == dict.fromkeys(reasons.split(), 1)
    assert (report["rows_in"], report["rows_kept"]) == (10, 3)


def test_a_place_that_holds_no_manifest_is_named(tmp_path):
    (tmp_path / "recordings.jsonl").touch()
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BlspError, match=rf"{place}: no lhotse manifest; looked for .*cuts.*jsonl.gz"):
            list(read(place))


def test_a_manifest_broken_off_is_not_taken_for_whole(tmp_path):
    audio = recording(tmp_path, "a")
    path = write(tmp_path / "cuts.jsonl.gz", *(cut(str(n), audio, spoken(f"s{n}")) for n in range(300)))
    whole = path.read_bytes()
    assert len(list(read(path))) == 300
    for broken in (whole[: len(whole) // 2], whole[:-4], b"not gzip", whole[:50] + b"\xff" * 50 + whole[100:]):
        path.write_bytes(broken)
        with pytest.raises(BlspError, match=r"cuts.jsonl.gz: broken off or not gzip .*; copy it again"):
            list(read(path))
    path.write_bytes(gzip.compress(b""))
    assert list(read(path)) == []


def test_a_packed_corpus_is_a_source_and_packs_to_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = load_params(PARAMS)
    settings = params.corpus.model_copy(update={"shard_size": 2, "sampling_rate_hz": RATE_HZ})

    def made():
        for n in range(9):
            yield Utterance(
                id=f"u{n}",
                audio=lambda n=n: Waveform(noise(1 + n / 10, seed=n), RATE_HZ),
                text=f"open the door {SPLITS[n % 3]}",
                split=SPLITS[n % 3],
                speaker=f"{n % 3}",
                licence="CC0-1.0",
                intent="door",
                source="made",
            )

    pack_all(settings, made, folder="first")
    report = pack_all(settings, lambda: read(tmp_path / "first"), folder="second")
    assert report["normalizers"] == {"whisper_basic": {"rows": 9, "version": f"whisper-normalizer {VERSION}"}}
    assert (report["rows_in"], report["rows_kept"]) == (9, 9)
    for split in SPLITS:
        first, second = (list(shards.load_cuts(split, corpus_dir=name)) for name in ("first", "second"))
        assert [one.id for one in first] == [one.id for one in second] and first
        assert [one.custom["intent"] for one in second] == ["door"] * 3
        for one, two in zip(first, second, strict=True):
            assert np.array_equal(one.load_audio(), two.load_audio())
    folders = [tmp_path / name / "train" for name in ("first", "second")]
    assert len({tuple(p.read_bytes() for p in sorted(folder.iterdir())) for folder in folders}) == 1
