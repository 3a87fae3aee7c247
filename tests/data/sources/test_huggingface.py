import functools
import io
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, Features, Value

from blsp.data import shards
from blsp.data.audio import load
from blsp.data.records import Dropped, Unusable, Utterance
from blsp.data.sources.huggingface import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed

RATE_HZ = 8_000


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whatever is asked of the Hub fails at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """What `datasets` keeps goes to a folder of the test's own, shown so that tests can look."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", path)
    return path


def noise(seed):
    return (0.1 * np.random.default_rng(seed).standard_normal(RATE_HZ)).astype(np.float32)


@functools.cache  # libsndfile writes the time into a file of floats
def wav(seed):
    stream = io.BytesIO()
    soundfile.write(stream, noise(seed), RATE_HZ, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def parquet(path, rows, audio=True, **features):
    """A parquet file as the Hub's are: with its features beside the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, **features})
    dataset = Dataset.from_list([{"audio": {"bytes": wav(0), "path": None}, **row} for row in rows], stored)
    (dataset.cast_column("audio", Audio()) if audio else dataset).to_parquet(path)
    return path


def sentences(*texts):
    return [{"sentence": text} for text in texts]


TEXT = {"sentence": Value("string")}


def test_columns_are_found_by_name_and_splits_mapped(tmp_path):
    features = {
        "sentence": Value("string"),
        "speaker_id": Value("int64"),
        "locale": Value("string"),
        "translation": Value("string"),
        "intent_class": ClassLabel(names=["off", "on"]),
        "license": Value("string"),
        "up_votes": Value("int64"),
    }
    row = {
        "audio": {"bytes": wav(7), "path": "7.wav"},
        "sentence": "Turn it on",
        "speaker_id": 12,
        "locale": "en",
        "translation": "Mach an",
        "intent_class": 1,
        "license": "CC0-1.0",
        "up_votes": 3,
    }
    bare = {"sentence": "Off", **dict.fromkeys(list(features)[1:])}
    folder = tmp_path / "my corpus"
    parquet(folder / "data" / "train-00000-of-00002.parquet", [row, bare], **features)
    parquet(folder / "data" / "train-00001-of-00002.parquet", [bare], **features)
    parquet(folder / "data" / "validation-00000-of-00001.parquet", [bare], **features)
    parquet(folder / "data" / "test-00000-of-00001.parquet", [bare], **features)

    rows = list(read(folder))
    assert [(one.id, one.split) for one in rows] == [
        ("my-corpus-train-00000000", "train"),
        ("my-corpus-train-00000001", "train"),
        ("my-corpus-train-00000002", "train"),
        ("my-corpus-validation-00000000", "dev"),
        ("my-corpus-test-00000000", "test"),
    ]
    known = {key: value for key, value in vars(rows[0]).items() if value not in (None, ())}
    assert known == {
        "id": "my-corpus-train-00000000",
        "audio": wav(7),
        "text": "Turn it on",
        "speaker": "12",
        "language": "en",
        "split": "train",
        "licence": "CC0-1.0",
        "translation": "Mach an",
        "intent": "on",
        "source": str(folder),
    }
    assert (rows[1].speaker, rows[1].intent, rows[1].licence) == (None, None, None)
    assert np.array_equal(load(rows[0], RATE_HZ), noise(7))
    assert [vars(one) for one in read(folder)] == [vars(one) for one in rows]


def test_a_plain_parquet_file_will_do_and_one_split_alone_is_none(tmp_path):
    table = pa.table({"audio": [{"bytes": wav(1), "path": None}], "normalized_text": ["hello"]})
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = read(tmp_path)
    assert (row.text, row.split) == ("hello", None)
    assert np.array_equal(load(row, RATE_HZ), noise(1))


def audio_folder(tmp_path):
    for split, seeds in (("train", (0, 1)), ("test", (2,))):
        (tmp_path / split).mkdir(parents=True)
        lines = ["file_name,transcription,speaker_id"]
        for seed in seeds:
            (tmp_path / split / f"{seed}.wav").write_bytes(wav(seed))
            lines.append(f"{seed}.wav,sentence {seed},s{seed}")
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines))
    return tmp_path


def test_a_folder_of_audio_gives_its_files(tmp_path):
    rows = list(read(audio_folder(tmp_path)))
    found = [(one.audio, one.text, one.speaker, one.split) for one in rows]
    assert found == [
        (tmp_path / "train" / "0.wav", "sentence 0", "s0", "train"),
        (tmp_path / "train" / "1.wav", "sentence 1", "s1", "train"),
        (tmp_path / "test" / "2.wav", "sentence 2", "s2", "test"),
    ]


def test_audio_in_an_archive_is_read_when_it_is_wanted(tmp_path):
    inside = audio_folder(tmp_path / "made") / "train"
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for path in sorted(inside.iterdir()):
            archive.write(path, path.name)
    rows = list(read(tmp_path / "zipped"))
    assert [np.array_equal(load(one, RATE_HZ), noise(n)) for n, one in enumerate(rows)] == [True, True]
    (tmp_path / "zipped" / "train.zip").unlink()
    with pytest.raises(Unusable, match="no such file") as caught:
        load(rows[0], RATE_HZ)
    assert caught.value.reason == "missing_file"


def test_a_configuration_is_chosen_in_the_path(tmp_path):
    for config, text in (("clean", "one"), ("other", "two")):
        parquet(tmp_path / "mine" / config / "train.parquet", sentences(text), **TEXT)
    files = "\n".join(f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in ("clean", "other"))
    (tmp_path / "mine" / "README.md").write_text(f"---\nconfigs:\n{files}\n---\n")
    (row,) = read(tmp_path / "mine?config=other")
    assert (row.text, row.id) == ("two", "mine-other-train-00000000")
    with pytest.raises(BlspError, match=r"\?config= chooses .*\n?.*\['clean', 'other'\]"):
        list(read(tmp_path / "mine"))
    with pytest.raises(BlspError, match="unknown revision; what may follow: config"):
        list(read(tmp_path / "mine?config=other&revision=abc"))


def test_rows_without_words_or_sound_and_of_other_splits_are_dropped(tmp_path):
    rows = sentences("good", None, "silent", "neither")
    rows[2]["audio"] = {"bytes": None, "path": None}
    rows[3]["audio"] = None
    parquet(tmp_path / "train.parquet", rows, **TEXT)
    parquet(tmp_path / "test.parquet", sentences("held out"), **TEXT)
    readme = "---\nconfigs:\n- config_name: x\n  data_files:\n"
    for split in ("train", "test", "invalidated"):
        readme += f"  - split: {split}\n    path: {split}.parquet\n"
    parquet(tmp_path / "invalidated.parquet", sentences("bad", "worse"), **TEXT)
    (tmp_path / "README.md").write_text(readme + "---\n")
    found = list(read(tmp_path))
    assert [row.text for row in found if isinstance(row, Utterance)] == ["good", "held out"]
    dropped = [row for row in found if isinstance(row, Dropped)]
    assert [row.reason for row in dropped] == ["missing_key"] * 3 + ["other_split"] * 2
    assert dropped[-1].id.endswith("-invalidated-00000001")


def test_audio_elsewhere_on_this_machine_is_dropped(tmp_path):
    (tmp_path / "secret.wav").write_bytes(wav(1))
    (tmp_path / "mine").mkdir()
    paths = [str(tmp_path / "mine" / "a.wav"), str(tmp_path / "secret.wav"), "../secret.wav", "mine/../../b.wav"]
    paths += [f"file://{tmp_path}/secret.wav", f"zip://a.wav::{tmp_path}/secret.zip"]
    rows = [{"sentence": "a", "audio": {"bytes": None, "path": path}} for path in paths]
    parquet(tmp_path / "mine" / "train.parquet", rows, audio=False, **TEXT)
    found = [getattr(row, "reason", "kept") for row in read(tmp_path / "mine")]
    assert found == ["kept", *["bad_path"] * 5]


def test_words_that_are_no_string_are_dropped(tmp_path):
    parquet(tmp_path / "a.parquet", [{"sentence": ["a", "b"]}, {"sentence": []}], sentence=[Value("string")])
    assert [row.reason for row in read(tmp_path)] == ["wrong_type", "wrong_type"]


@pytest.mark.parametrize("kind", ["text", "audio", "neither"])
def test_a_missing_column_is_named_beside_those_there_are(tmp_path, kind):
    if kind == "text":
        parquet(tmp_path / "a.parquet", [{"words": "a"}], words=Value("string"))
        expected = "no column with text among audio, words; expected one of text, sentence"
    elif kind == "audio":
        pq.write_table(pa.table({"sentence": ["a"], "audio": ["a.wav"]}), tmp_path / "a.parquet")
        expected = "no column with audio among sentence, audio; expected one of audio, .* that holds audio files"
    else:
        (tmp_path / "a.txt").write_text("hello\n")
        expected = "no column with audio among text"
    with pytest.raises(BlspError, match=expected):
        list(read(tmp_path))


def test_no_dataset_is_named_and_nothing_of_it_is_run(tmp_path):
    (tmp_path / "coded").mkdir()
    (tmp_path / "coded" / "coded.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "coded", tmp_path / "empty"):
        with pytest.raises(BlspError, match=f"{place}: looked for a folder of parquet or audio files"):
            list(read(place))
    assert not (tmp_path / "hacked").exists()
    with pytest.raises(BlspError, match="nowhere: no such folder, and no name of a dataset; write owner/name"):
        list(read(tmp_path / "nowhere"))
    with pytest.raises(BlspError, match="owner/name.*: looked for .* on the Hub"):
        list(read(type(tmp_path)("owner/name?config=a&revision=b")))


def test_a_broken_parquet_file_stops_the_run(tmp_path):
    path = parquet(tmp_path / "train.parquet", sentences("a", "b"), **TEXT)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BlspError, match=f"{tmp_path}"):
        list(read(tmp_path))


def test_without_the_library_one_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BlspError, match=r"pip install 'blsp\[huggingface\]'"):
        list(read(tmp_path))


def test_it_packs_and_keeps_no_copy(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    for split, words in (("train", {0: "lamp", 1: "door"}), ("test", {2: "window"})):
        rows = [{"sentence": word, "audio": {"bytes": wav(seed), "path": None}} for seed, word in words.items()]
        rows += [{"sentence": None}, {"sentence": f"broken {split}", "audio": {"bytes": wav(9)[:9000], "path": None}}]
        parquet(tmp_path / "mine" / f"{split}.parquet", rows, **TEXT)
    report = packed(read, tmp_path / "mine", tmp_path / "corpus", sampling_rate_hz=RATE_HZ)
    assert (report["rows_in"], report["rows_kept"]) == (7, 3)
    assert report["dropped"] == {"missing_key": 2, "undecodable": 2}
    cuts = list(shards.load_cuts("train", corpus_dir=tmp_path / "corpus"))
    assert [cut.supervisions[0].text for cut in cuts] == ["lamp", "door"]
    assert np.abs(cuts[1].load_audio()[0] - noise(1)).max() <= 1 / 2**15
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) == 0
