import pytest

from blsp.data.account import Account
from blsp.data.drops import read_drops
from blsp.data.fingerprints import Print
from blsp.data.packing import Tally
from blsp.data.records import Dropped
from blsp.params import Source
from blsp.staging import Contents

FILE = Contents(10240, "0" * 64)
SOURCES = [Source(name="manifest", path="one.jsonl"), Source(name="manifest", path="two.jsonl")]


def tally(split, number, places, dropped=()):
    return Tally(
        split=split,
        number=number,
        seconds=float(len(places)),
        speakers=["ann"] * bool(places),
        places=list(places),
        dropped=[(place, Dropped(f"row {place}", reason, "why")) for place, reason in dropped],
        prints=[Print(f"row {place}", bytes(32), 1.0) for place in places],
        files={"recording.000000.tar": FILE} if places else {},
    )


def account(rows_in=(5, 3)):
    """Rows 0 to 4 are the first source's, 5 to 7 the second's."""
    made = Account(SOURCES, rows_in)
    made.drop(1, Dropped("row 1", "not_json", "why"))
    made.add(tally("train", 0, [0, 5], [(3, "silent")]))
    made.add(tally("train", 1, [], [(6, "silent")]))
    made.add(tally("test", 0, [4, 7], [(2, "too_long")]))
    return made


def test_every_row_is_counted_under_its_source_and_the_dropped_are_listed_in_order(tmp_path):
    made, packed = account(), (0, {"recording.000000.tar": FILE})
    assert made.rows_seen == 8 and made.shards == {"train": [packed], "dev": [], "test": [packed]}
    report = made.settle(tmp_path / "dropped.jsonl.gz")
    assert [row["id"] for row in read_drops(tmp_path / "dropped.jsonl.gz")] == ["row 1", "row 2", "row 3", "row 6"]
    first, second = report["sources"]
    assert (first["rows_in"], first["rows_kept"]) == (5, 2)
    assert first["dropped"] == {"not_json": 1, "too_long": 1, "silent": 1}
    assert (second["rows_in"], second["rows_kept"], second["dropped"]) == (3, 2, {"silent": 1})
    assert (report["rows_in"], report["rows_kept"]) == (8, 4)
    assert report["dropped"] == {"not_json": 1, "too_long": 1, "silent": 2}
    assert report["splits"]["train"] == {"rows": 2, "hours": round(2 / 3600, 6), "speakers": 1}
    assert report["examples"]["silent"] == [
        {"id": "row 3", "source": "one.jsonl", "detail": "why"},
        {"id": "row 6", "source": "two.jsonl", "detail": "why"},
    ]


@pytest.mark.parametrize(
    ("rows_in", "places"), [((6, 3), []), ((5, 4), []), ((5, 2), []), ((5, 3), [8]), ((4, 4), [8])]
)
def test_a_row_too_many_or_too_few_is_found_in_its_source(tmp_path, rows_in, places):
    made = account(rows_in)
    made.add(tally("dev", 0, places))
    with pytest.raises(RuntimeError, match="rows in, but"):
        made.settle(tmp_path / "dropped.jsonl.gz")
