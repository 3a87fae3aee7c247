from pathlib import Path

import pytest

from blsp.data import planning
from blsp.data.records import Dropped, Utterance
from blsp.params import load_params

SETTINGS = load_params(Path(__file__).parents[2] / "params.yaml").corpus.model_copy(update={"shard_size": 2})


def row(id_, split, text="some words"):
    return Utterance(id=id_, audio=b"", text=text, speaker=split, split=split, source="here")


ROWS = (
    [row("a", "train", "one"), Dropped("line 2", "not_json", ""), row("b", "test", "two"), row("c", "train", "three")],
    [row("a", "train", "four"), row("d", "train", "Two!"), row("e", "train", "five"), row("f", "test", "<NOISE>")],
)


def planned(rows, unwanted=None):
    """The shards as (split, number, ids, places, unwanted), and the rows that get into none."""
    sources, dropped = [lambda own=own: iter(own) for own in rows], []
    settings = SETTINGS.model_copy(update={"sources": SETTINGS.sources * len(rows)})
    found = planning.survey(sources, settings)
    shards = planning.plan(sources, settings, found, unwanted or {}, lambda *one: dropped.append(one))
    return (
        [(s.split, s.number, [one.id for one in s.rows], list(s.places), list(s.unwanted)) for s in shards],
        [(place, one.id, one.reason) for place, one in dropped],
        found,
    )


def test_rows_go_to_their_splits_shards_and_keep_their_places_over_all_sources():
    shards, dropped, found = planned(ROWS, unwanted={"e": Dropped("e", "duplicate_audio", "")})
    assert found.rows_in == (4, 4)
    assert shards == [
        ("train", 0, ["a", "c"], [0, 3], []),
        ("train", 1, ["e"], [6], ["e"]),
        ("test", 0, ["b"], [2], []),
    ]
    assert dropped == [
        (1, "line 2", "not_json"),
        (4, "a", "duplicate_id"),
        (5, "d", "sentence_in_other_split"),
        (7, "f", "noise_only"),
    ]


def test_ids_whose_hashes_collide_are_not_taken_for_one(monkeypatch):
    """Hashes only say which ids must be compared."""
    monkeypatch.setattr(planning, "hash", lambda id_: 1, raising=False)
    _, dropped, found = planned(ROWS)
    assert found.repeated_ids == {1}
    assert [id_ for _, id_, reason in dropped if reason == "duplicate_id"] == ["a"]


@pytest.mark.parametrize("rows", [([],), ([], [row("a", "train")])])
def test_sources_may_be_empty(rows):
    shards, dropped, found = planned(rows)
    assert len(shards) == sum(map(len, rows)) and dropped == [] and found.rows_in == tuple(map(len, rows))
