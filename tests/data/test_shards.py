import gzip
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from blsp.data import shards
from blsp.data.records import Utterance
from blsp.errors import BlspError

RATE_HZ = 16_000


def noise(seed, num_samples=4000):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def write(folder, ids, shard_size=3, split="test"):
    with shards.ShardWriter(Path(folder) / split, shard_size) as writer:
        for number, id_ in enumerate(ids):
            utterance = Utterance(
                id=id_,
                audio=Path("unused.wav"),
                text=f"text {number}",
                speaker="ann",
                language="en",
                licence="CC0-1.0",
                intent="light_on" if number == 0 else None,
                source="mine",
            )
            samples = noise(number, 4000 + number)
            cut = shards.make_cut(utterance, split, samples.size, RATE_HZ)
            writer.write(cut, shards.encode_flac(samples, RATE_HZ))


IDS = ["a", "deep/er/b.wav", "with space", "ümlaut", "x" * 180, "c.1", "7"]


def test_what_is_written_comes_back_in_order_with_audio(tmp_path):
    write(tmp_path, IDS)
    assert sorted(os.listdir(tmp_path / "test")) == [
        f"{kind}.{number:06d}.{ending}"
        for kind, ending in (("cuts", "jsonl.gz"), ("recording", "tar"))
        for number in range(3)
    ]
    cuts = shards.load_cuts("test", corpus_dir=tmp_path)
    for _ in range(2):  # lazily, and as often as one likes
        assert [cut.id for cut in cuts] == IDS
    for number, cut in enumerate(cuts):
        (segment,) = cut.supervisions
        assert (segment.text, segment.speaker, segment.language) == (f"text {number}", "ann", "en")
        assert segment.duration == cut.duration == cut.num_samples / RATE_HZ
        audio = cut.load_audio()
        assert audio.shape == (1, 4000 + number)
        assert np.abs(audio[0] - noise(number, 4000 + number)).max() <= 1 / 2**15
        expected = {"split": "test", "licence": "CC0-1.0", "source": "mine"}
        if number == 0:
            expected["intent"] = "light_on"
        assert {key: value for key, value in cut.custom.items() if not key.startswith("shar")} == expected


def test_lhotse_reads_the_folder_by_itself(tmp_path):
    from lhotse import CutSet

    write(tmp_path, IDS)
    cuts = CutSet.from_shar(in_dir=tmp_path / "test")
    assert [(cut.id, cut.load_audio().size) for cut in cuts] == [(id_, 4000 + n) for n, id_ in enumerate(IDS)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_input_gives_the_same_bytes_at_any_time_and_place(tmp_path, monkeypatch):
    write(tmp_path / "one", IDS)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.chdir(tmp_path)
    write("two", IDS)
    for folder in ("one", "two"):
        for shard in shards.iter_shards("test", tmp_path / folder):
            shards.write_field(shard, "echo", {"a": {"text": "ä"}} if shard.number == 0 else {}, tmp_path / folder)
    assert len(contents(tmp_path / "one")) == 9
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_block_that_raises_leaves_whole_shards_only(tmp_path):
    def ids():
        yield from "abcd"
        raise RuntimeError("in the middle of the second shard")

    with pytest.raises(RuntimeError, match="in the middle"):
        write(tmp_path, ids())
    assert sorted(os.listdir(tmp_path / "test")) == ["cuts.000000.jsonl.gz", "recording.000000.tar"]
    assert [cut.id for cut in shards.load_cuts("test", corpus_dir=tmp_path)] == ["a", "b", "c"]


def test_a_field_that_fails_keeps_what_was_there(tmp_path):
    write(tmp_path, "ab")
    (shard,) = shards.iter_shards("test", tmp_path)
    path = shards.write_field(shard, "echo", {"a": {"text": "one"}}, tmp_path / "more")
    with pytest.raises(ValueError, match="JSON"):
        shards.write_field(shard, "echo", {"a": {"text": "two"}, "b": {"loss": float("nan")}}, tmp_path / "more")
    assert os.listdir(path.parent) == [path.name]
    assert shards.read_field(shard, "echo", tmp_path / "more") == {"a": {"text": "one"}}


def test_a_field_joins_its_cuts_and_placeholders_are_absent(tmp_path):
    write(tmp_path / "corpus", IDS)
    more = tmp_path / "more"
    for shard in shards.iter_shards("test", tmp_path / "corpus"):
        rows = {cut.id: {"text": f"on {cut.supervisions[0].text}"} for cut in shard.cuts()}
        rows.pop("ümlaut", None)
        shards.write_field(shard, "continuation", dict(reversed(rows.items())), more)
        shards.write_field(shard, "repetition", {}, more)
        assert shards.read_field(shard, "continuation", more) == rows
    with gzip.open(more / "test" / "continuation.000001.jsonl.gz", "rt") as stream:
        assert json.loads(stream.readline()) == {"cut_id": "ümlaut"}

    cuts = list(shards.load_cuts("test", ["continuation", "repetition"], tmp_path / "corpus", more))
    assert [cut.id for cut in cuts] == IDS
    for number, cut in enumerate(cuts):
        if cut.id == "ümlaut":
            assert not cut.has_custom("continuation")
        else:
            assert cut.continuation == {"text": f"on text {number}"}
        assert not cut.has_custom("repetition")
        assert cut.load_audio().size == 4000 + number


def test_a_field_for_unknown_cuts_is_refused(tmp_path):
    write(tmp_path, "ab")
    (shard,) = shards.iter_shards("test", tmp_path)
    with pytest.raises(BlspError, match=r"1 rows have no cut in .*'z'"):
        shards.write_field(shard, "echo", {"z": {"text": "one"}}, tmp_path)


def test_what_is_missing_or_does_not_match_is_named(tmp_path):
    corpus, more = tmp_path / "corpus", tmp_path / "more"
    with pytest.raises(BlspError, match="corpus: no such folder; run `blsp corpus` first"):
        shards.load_cuts("test", corpus_dir=corpus)
    write(corpus, "abcd")
    assert list(shards.load_cuts("dev", corpus_dir=corpus)) == []
    with pytest.raises(BlspError, match=r"echo\.000000\.jsonl\.gz: no such file; run `blsp continuations` first"):
        shards.load_cuts("test", ["echo"], corpus, more)
    for shard in shards.iter_shards("test", corpus):
        shards.write_field(shard, "echo", {}, more)
    write(corpus, "abc")
    (corpus / "test" / "cuts.000001.jsonl.gz").unlink()
    write(tmp_path / "shorter", "ab")
    with pytest.raises(BlspError, match="its 3 rows are not the 2 cuts"):
        shards.load_cuts("test", ["echo"], tmp_path / "shorter", more)
    (corpus / "test" / "recording.000000.tar").unlink()
    with pytest.raises(BlspError, match=r"recording\.000000\.tar: missing"):
        shards.load_cuts("test", corpus_dir=corpus)


def test_a_gap_between_shards_is_named(tmp_path):
    write(tmp_path, "abcdefgh")
    (tmp_path / "test" / "cuts.000001.jsonl.gz").unlink()
    with pytest.raises(BlspError, match=r"cuts\.000001\.jsonl\.gz: missing"):
        list(shards.iter_shards("test", tmp_path))
