import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ruamel.yaml import YAML

from blsp.data import audio, corpus, shards
from blsp.data.drops import read_drops
from blsp.data.records import SPLITS, Utterance, Waveform
from blsp.errors import BlspError
from blsp.params import Source, load_params

RATE_HZ = 16_000
REPO = Path(__file__).parents[2]


def noise(duration_s=1.0, rate_hz=RATE_HZ, seed=0, channels=1):
    shape = (round(duration_s * rate_hz), channels)
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.fixture
def params(tmp_path, monkeypatch):
    """The committed params for a manifest in the working folder, mine/manifest.jsonl."""
    monkeypatch.chdir(tmp_path)
    Path("mine/clips").mkdir(parents=True)
    committed = load_params(REPO / "params.yaml")
    settings = {
        "sources": [Source(name="manifest", path="mine/manifest.jsonl")],
        "normalizer": "whisper_english",
        "sampling_rate_hz": RATE_HZ,
        "min_duration_s": 0.3,
        "max_duration_s": 30.0,
        "min_chars_per_s": 2.0,
        "max_chars_per_s": 35.0,
        "max_silent_share": 0.9,
        "max_clipped_share": 0.01,
        "dev_share": 0.05,
        "test_share": 0.05,
        "shard_size": 4,
    }
    return committed.model_copy(update={"corpus": committed.corpus.model_copy(update=settings)})


def write_manifest(rows):
    Path("mine/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def clip(name, samples=None, rate_hz=RATE_HZ, **options):
    soundfile.write(Path("mine/clips") / name, noise() if samples is None else samples, rate_hz, **options)
    return f"clips/{name}"


# Words that Whisper's normaliser leaves alone, so that every sentence is another.
WORDS = [
    "lamp",
    "door",
    "window",
    "kitchen",
    "music",
    "garden",
    "table",
    "mirror",
    "candle",
    "carpet",
    "ladder",
]


def good_rows():
    for number, word in enumerate(WORDS):
        split = "test" if number < 3 else "dev" if number < 5 else "train"
        yield {
            "audio": clip(f"{word}.wav", noise(1 + number / 10, seed=number)),
            "text": f"Open the {word}!",
            "id": word,
            "speaker": f"{split} {number % 2}",
            "split": split,
            "language": "en",
            "licence": "CC0-1.0",
        }


def bad_rows():
    """Rows and what each is dropped for."""
    bad = noise()
    bad[5] = np.nan
    (Path("mine/clips") / "garbage.wav").write_bytes(b"RIFF but not really" * 50)
    base = {"split": "train", "text": "Shut the fridge", "speaker": "train 0"}
    yield {**base, "audio": "clips/nowhere.wav"}, "missing_file"
    yield {**base, "audio": "clips/garbage.wav"}, "undecodable"
    yield {**base, "audio": clip("nan.wav", bad, subtype="FLOAT")}, "not_finite"
    yield {**base, "audio": clip("none.wav", noise(0))}, "empty_audio"
    yield {**base, "audio": clip("short.wav", noise(0.2))}, "too_short"
    yield {**base, "audio": clip("long.flac", noise(30.5))}, "too_long"
    yield {**base, "audio": clip("beyond.wav"), "start_s": 0.5, "end_s": 3}, "segment_outside_audio"
    yield {**base, "audio": clip("negative.wav"), "start_s": -1, "end_s": 3}, "bad_segment"
    yield {**base, "audio": clip("empty.wav"), "text": " "}, "empty_text"
    yield {**base, "audio": clip("noise.wav"), "text": "<NOISE> <PERIOD>"}, "noise_only"
    yield {**base, "audio": clip("slow.wav", noise(20)), "text": "Shut it"}, "too_few_chars_per_s"
    yield {**base, "audio": clip("fast.wav"), "text": "shut the fridge " * 10}, "too_many_chars_per_s"
    yield {**base, "audio": clip("twice.wav"), "id": WORDS[0]}, "duplicate_id"
    yield {**base, "audio": clip("leak.wav"), "text": f"open, the {WORDS[0]}"}, "sentence_in_other_split"
    yield {**base, "audio": clip("leak2.wav"), "text": f"open the {WORDS[4]}"}, "sentence_in_other_split"
    yield {**base, "audio": clip("typed.wav"), "text": 5}, "wrong_type"
    yield {**base, "audio": clip("idle.wav"), "id": "../up"}, "bad_id"
    yield {"text": "no audio at all"}, "missing_key"


def dropped_rows():
    return list(read_drops("data/corpus/dropped.jsonl.gz"))


def kept_by_split():
    return {split: [cut.id for cut in shards.load_cuts(split)] for split in SPLITS}


def test_every_row_is_kept_or_dropped_with_its_reason(params, capsys):
    good, bad = list(good_rows()), list(bad_rows())
    write_manifest([*good, *(row for row, _ in bad)])
    with Path("mine/manifest.jsonl").open("a") as stream:
        stream.write("{half a row\n")
    expected = [*(reason for _, reason in bad), "not_json"]

    corpus.run(params)

    report = json.loads(Path("reports/corpus.json").read_text())
    assert [row["reason"] for row in dropped_rows()] == expected
    assert report["dropped"] == {reason: expected.count(reason) for reason in expected}
    assert (report["rows_in"], report["rows_kept"]) == (len(good) + len(expected), len(good))
    assert report["normalizer"] == "whisper_english"
    assert {name: found["rows"] for name, found in report["normalizers"].items()} == {"whisper_english": 24}
    assert all(row["id"] and row["detail"] for row in dropped_rows())
    assert kept_by_split() == {"test": WORDS[:3], "dev": WORDS[3:5], "train": WORDS[5:]}
    assert report["splits"]["test"] == {"rows": 3, "hours": round(3.3 / 3600, 6), "speakers": 2}
    assert sorted(path.name for path in Path("data/corpus/train").glob("cuts*")) == [
        "cuts.000000.jsonl.gz",
        "cuts.000001.jsonl.gz",
    ]
    printed = capsys.readouterr().out
    assert "test" in printed and "missing_file" in printed


def test_cuts_carry_what_the_manifest_says(params):
    write_manifest(
        [
            *good_rows(),
            {
                "audio": clip("stereo.flac", noise(3, 44_100, channels=2), 44_100),
                "text": "Where is it <QUESTIONMARK>",
                "id": "rich",
                "start_s": 0.5,
                "end_s": 2.0,
                "split": "test",
                "translation": "Wo ist es?",
                "intent": "find",
                "answer": "here",
            },
            {
                "audio": clip("phone.ogg", noise(2, 8_000), 8_000),
                "text": "Ring me",
                "id": "phone",
                "split": "test",
            },
            {
                "audio": clip("music.mp3", noise(2, 48_000), 48_000),
                "text": "Sing",
                "id": "mp3",
                "split": "test",
            },
        ]
    )
    corpus.run(params)
    cuts = {cut.id: cut for cut in shards.load_cuts("test")}
    rich = cuts["rich"]
    assert rich.supervisions[0].text == "Where is it?"
    assert {key: rich.custom[key] for key in ("split", "translation", "intent", "answer", "source")} == {
        "split": "test",
        "translation": "Wo ist es?",
        "intent": "find",
        "answer": "here",
        "source": "manifest.jsonl",
    }
    for id_, duration_s in (("rich", 1.5), ("phone", 2.0), ("mp3", 2.0), (WORDS[1], 1.1)):
        assert cuts[id_].duration == pytest.approx(duration_s, abs=0.05)
        assert cuts[id_].sampling_rate == RATE_HZ
        assert cuts[id_].load_audio().shape == (1, round(cuts[id_].duration * RATE_HZ))
    assert (cuts[WORDS[1]].custom["licence"], cuts[WORDS[1]].supervisions[0].language) == ("CC0-1.0", "en")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_two_runs_give_the_same_bytes_and_leave_nothing_of_the_first(params):
    rows = [row for row, _ in bad_rows()] + list(good_rows())
    more = [clip(f"more{seed}.wav", noise(seed=seed)) for seed in range(50, 54)]
    write_manifest([*rows, *({**rows[-1], "id": name, "audio": name} for name in more)])
    corpus.run(params)
    larger = contents("data")
    write_manifest(rows)
    corpus.run(params)
    first, report = contents("data"), Path("reports/corpus.json").read_bytes()
    assert first.keys() < larger.keys()
    corpus.run(params)
    assert contents("data") == first
    assert Path("reports/corpus.json").read_bytes() == report


def test_rows_without_split_are_split_by_speaker_and_share_no_sentence(params):
    rows = [{**row, "speaker": row["id"], "split": None} for row in good_rows()]
    again = [
        {
            **row,
            "id": f"{row['id']} again",
            "speaker": f"{row['id']} again",
            "audio": clip(f"{seed}.wav", noise(seed=seed)),
        }
        for seed, row in enumerate(rows, start=100)
    ]
    write_manifest(rows + again)
    corpus.run(params)
    report = json.loads(Path("reports/corpus.json").read_text())
    assert all(report["splits"][split]["rows"] for split in SPLITS)
    words = {split: {id_.split()[0] for id_ in ids} for split, ids in kept_by_split().items()}
    assert not (words["train"] & words["dev"] or words["train"] & words["test"] or words["dev"] & words["test"])
    assert set(report["dropped"]) <= {"sentence_in_other_split"}
    assert report["rows_in"] == report["rows_kept"] + len(dropped_rows()) == 2 * len(WORDS)


def test_an_empty_split_is_refused_and_the_last_result_stays(params):
    write_manifest(good_rows())
    corpus.run(params)
    before = contents("data"), contents("reports")
    write_manifest([{"audio": "clips/nowhere.wav", "text": "Hello", "split": "test"}, list(good_rows())[-1]])
    with pytest.raises(BlspError, match="none is left for test") as caught:
        corpus.run(params)
    assert "of 2 rows of mine/manifest.jsonl" in str(caught.value)
    assert "missing_file: 1, first nowhere-" in str(caught.value)
    write_manifest([])
    with pytest.raises(BlspError, match=r"of 0 rows .* none is left for train and test.*\n.*\(nothing was\)"):
        corpus.run(params)
    assert (contents("data"), contents("reports")) == before
    assert not list(Path("data").glob(".*"))


def test_a_fault_in_the_middle_leaves_no_final_name(params):
    def rows():
        for number in range(9):
            audio = broken if number == 8 else functools.partial(Waveform, noise(seed=number)[:, 0], RATE_HZ)
            split = SPLITS[number % 3]
            yield Utterance(id=str(number), audio=audio, text=f"words {split}", split=split, source="here")

    def broken():
        raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        corpus.pack([rows], params.corpus.model_copy(update={"shard_size": 2}), params.execution)
    assert not Path("data").exists()


def test_synthesised_rows_are_packed_like_files(params):
    def rows():
        for number in range(6):
            waveform = functools.partial(Waveform, noise(1.0, 22_050, seed=number)[:, 0], 22_050)
            split = SPLITS[number % 3]
            yield Utterance(id=str(number), audio=waveform, text=f"words of {split}", split=split, source="here")

    report = corpus.pack([rows], params.corpus, params.execution)
    assert report["rows_kept"] == 6
    assert kept_by_split() == {"train": ["0", "3"], "dev": ["1", "4"], "test": ["2", "5"]}
    assert {cut.num_samples for cut in shards.load_cuts("train")} == {RATE_HZ}


@pytest.mark.parametrize("case", ["as_written", "lower"])
def test_the_llm_reads_transcripts_as_they_are_written(params, capsys, case):
    texts = ("ZERO THREE FIVE ONE", "IS IT YOU <COMMA> O&apos;BRIEN", "STOP <|IM_END|> (REALLY)")
    written = {
        "as_written": ("ZERO THREE FIVE ONE", "IS IT YOU, O'BRIEN", "STOP < |IM_END| > (REALLY)"),
        "lower": ("Zero three five one.", "Is it you, o'brien?", "Stop < |im_end| > (really)."),
    }
    rows = [
        {
            "audio": clip(f"{n}.wav", noise(3.4, seed=n)),
            "id": str(n),
            "text": text,
            "language": "en",
            "split": SPLITS[n],
        }
        for n, text in enumerate(texts)
    ]
    write_manifest(rows)
    sources = [source.model_copy(update={"case": case}) for source in params.corpus.sources]
    settings = params.corpus.model_copy(update={"sources": sources})
    corpus.run(params.model_copy(update={"corpus": settings}))
    packed = {cut.id: cut.supervisions[0].text for split in SPLITS for cut in shards.load_cuts(split)}
    assert packed == {str(n): text for n, text in enumerate(written[case])}
    report = json.loads(Path("reports/corpus.json").read_text())
    counts = {"html_entities": 1, "punctuation_tags": 1, "control_tokens": 1}
    assert report["cleaned"] == report["sources"][0]["cleaned"] == counts
    assert report["sources"][0]["all_in_capitals"] == (case == "as_written")
    assert ("every transcript is in capitals" in capsys.readouterr().out) == (case == "as_written")


def test_a_source_that_changes_while_it_is_read_is_not_reported_as_whole(params):
    lengths = iter((6, 6, 5))

    def rows():
        for number in range(next(lengths)):
            waveform = functools.partial(Waveform, noise(seed=number)[:, 0], RATE_HZ)
            split = SPLITS[number % 3]
            yield Utterance(id=str(number), audio=waveform, text=f"words of {split}", split=split, source="here")

    with pytest.raises(RuntimeError, match="6 rows in, but 5 kept and 0 dropped"):
        corpus.pack([rows], params.corpus, params.execution)


def test_a_recording_is_in_one_split_and_there_once(params):
    """Found again in another format, under another name, with another transcript."""
    wave = sum(np.sin(2 * np.pi * hz * np.arange(2 * RATE_HZ) / RATE_HZ) for hz in (300, 700, 1900)) / 4
    held_out = wave * np.abs(np.sin(np.arange(wave.size) / 900)) + noise(2.0, seed=7)[:, 0] / 4
    rows = [
        *good_rows(),
        {"audio": clip("held.wav", held_out), "text": "say this", "id": "held", "split": "test"},
        {"audio": clip("quiet.ogg", 0.3 * held_out), "text": "other words", "id": "leaked", "split": "train"},
        {"audio": clip("again.flac", noise(2, seed=10)), "text": "lift the ladder", "id": "a", "split": "train"},
        {"audio": clip("again.wav", noise(2, seed=10)), "text": "lift that ladder", "id": "b", "split": "train"},
    ]
    write_manifest(rows)
    corpus.run(params)
    assert {row["id"]: (row["reason"], row["detail"]) for row in dropped_rows()} == {
        "leaked": ("audio_in_other_split", "sounds like held, which is held out further; train here"),
        # The clip of "ladder" is that noise too, and comes first.
        "a": ("duplicate_audio", "the same recording as ladder"),
        "b": ("duplicate_audio", "the same recording as ladder"),
    }
    assert kept_by_split() == {"test": [*WORDS[:3], "held"], "dev": WORDS[3:5], "train": WORDS[5:]}


def test_silent_and_clipped_rows_are_dropped(params):
    silence = np.zeros((RATE_HZ, 1), np.float32)
    sounds = {
        "zeros.wav": silence,
        "burst.wav": np.concatenate([noise(0.05), silence]),
        "loud.wav": 30 * noise(seed=3),
    }
    rows = [
        {"audio": clip(name, samples), "text": f"open the {name[:-4]}", "split": "train", "id": name}
        for name, samples in sounds.items()
    ]
    write_manifest([*good_rows(), *rows])
    corpus.run(params)
    reasons = {row["id"]: row["reason"] for row in dropped_rows()}
    assert reasons == {"zeros.wav": "silent", "burst.wav": "silent", "loud.wav": "clipped"}


def test_processes_change_nothing(params):
    write_manifest([*(row for row, _ in bad_rows()), *good_rows()])
    corpus.run(params)
    alone, report = contents("data"), Path("reports/corpus.json").read_bytes()
    several = params.execution.model_copy(update={"processes": 2})
    corpus.run(params.model_copy(update={"execution": several}))
    assert contents("data") == alone
    assert Path("reports/corpus.json").read_bytes() == report


KILLED = """
import os
from blsp.data import corpus, shards
from blsp.params import load_params
packed, finish = 0, shards.ShardWriter._finish
def finish_or_die(writer):
    global packed
    finish(writer)
    packed += 1
    if packed == {shards}:
        os.kill(os.getpid(), 9)
shards.ShardWriter._finish = finish_or_die
corpus.run(load_params("params.yaml"))
"""


@pytest.mark.parametrize("killed_in", [3, 5])
def test_a_killed_run_keeps_its_finished_shards(params, monkeypatch, killed_in):
    write_manifest(good_rows())
    corpus.run(params)
    whole, report = contents("data"), Path("reports/corpus.json").read_bytes()
    shutil.rmtree("data")
    Path("reports/corpus.json").unlink()
    YAML().dump(params.model_dump(by_alias=True), Path("params.yaml"))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.format(shards=killed_in)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        timeout=120,
    )
    assert killed.returncode == -9
    assert not Path("data").exists()
    decoded = []
    load = audio.load
    monkeypatch.setattr(audio, "load", lambda row, *rest: decoded.append(row.id) or load(row, *rest))
    corpus.run(params)
    assert contents("data") == whole
    assert Path("reports/corpus.json").read_bytes() == report
    assert 0 < len(decoded) < len(WORDS), "finished shards are not decoded again"


def test_each_source_has_its_own_account(params):
    good, bad = list(good_rows()), list(bad_rows())
    rows = [*good[:4], bad[0][0], *good[4:7], bad[1][0]]
    write_manifest(rows)
    with Path("mine/more.jsonl").open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in [bad[16][0], bad[3][0], *good[7:], bad[2][0]])
    sources = [Source(name="manifest", path=f"mine/{name}.jsonl") for name in ("manifest", "more")]
    corpus.run(params.model_copy(update={"corpus": params.corpus.model_copy(update={"sources": sources})}))
    report = json.loads(Path("reports/corpus.json").read_text())
    first, second = report["sources"]
    assert (first["name"], first["path"]) == ("manifest", "mine/manifest.jsonl")
    assert first["dropped"] == {bad[0][1]: 1, bad[1][1]: 1} and (first["rows_in"], first["rows_kept"]) == (9, 7)
    assert second["dropped"] == {bad[16][1]: 1, bad[3][1]: 1, bad[2][1]: 1}
    assert (second["rows_in"], second["rows_kept"]) == (7, 4)
    assert report["rows_in"] == 16 and report["rows_kept"] == 11
    # In the sources' order, though some are found before any audio is read and some in shards of several splits.
    expected = [bad[number][1] for number in (0, 1, 16, 3, 2)]
    assert [row["reason"] for row in dropped_rows()] == expected
    assert [row["source"] for row in dropped_rows()] == ["mine/manifest.jsonl"] * 2 + ["mine/more.jsonl"] * 3
    (shown,) = report["examples"][bad[2][1]]
    assert shown.items() <= dropped_rows()[-1].items() and shown["detail"]


def test_an_unknown_split_stops_before_any_audio(params):
    write_manifest([*good_rows(), {"audio": "clips/lamp.wav", "text": "Hello", "split": "other"}])
    with pytest.raises(BlspError, match="line 12: unknown split 'other'; write one of train, dev, test"):
        corpus.run(params)
    assert not Path("data").exists()


def test_what_a_source_does_not_say_is_counted_and_said(params, capsys):
    write_manifest([row | {"txt": "Hello"} for row in good_rows()])
    corpus.run(params)
    (source,) = json.loads(Path("reports/corpus.json").read_text())["sources"]
    assert source["ignored"] == {"txt": source["rows_in"]}
    printed = capsys.readouterr().out
    assert "key 'txt' in" in printed and "the nearest known key is 'text'" in printed
    assert ("name no licence, which is recorded as unknown" in printed) == bool(source["without"].get("licence"))
