"""One split in memory: parts of it. What it holds is tested where it is used."""

import itertools

import pytest

from blsp.data.index import load_index
from tests.contracts import packed


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Eight utterances."""
    monkeypatch.chdir(tmp_path)
    rows = packed.good_rows()
    for row in rows:
        for value in row.written.values():
            value["instruction"] = "do"
    packed.pack(rows)
    return load_index("train", packed.BEHAVIOURS)


def ids(index):
    return index.table["id"].to_pylist()


def test_a_smaller_part_lies_in_every_larger_one(index):
    parts = [set(ids(index.part(share))) for share in (0.125, 0.25, 0.26, 0.5, 0.99)]
    assert [len(part) for part in parts] == [1, 2, 3, 4, 8]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(parts))
    assert ids(index.part(0.5)) != ids(index)[:4], "not those that happen to be packed first"


def test_a_part_gives_the_same_utterances_as_the_whole(index):
    part = index.part(0.5)
    rows = [ids(index).index(id_) for id_ in ids(part)]
    assert rows == sorted(rows)
    for at, row in enumerate(rows):
        mine, whole = part.example(at, "continuation"), index.example(row, "continuation")
        assert (mine.id, mine.transcript, mine.response_ids) == (whole.id, whole.transcript, whole.response_ids)
        assert (mine.load_samples() == whole.load_samples()).all()
    assert part.response_tokens("repetition").tolist() == [3] * 4


def test_all_of_it_is_the_index_itself(index):
    assert index.part(1.0) is index
