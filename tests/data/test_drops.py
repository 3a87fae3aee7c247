import pytest

from blsp.data.drops import DROPPED, read_drops, write_drops
from blsp.errors import BlspError

ROWS = [{"id": "ä/1", "source": "mine", "reason": "too_long", "detail": "31 s"}, {"id": "2", "source": "mine"}]


def test_what_is_listed_is_read_again_in_order_and_has_the_same_bytes(tmp_path):
    write_drops(tmp_path / DROPPED, iter(ROWS))
    first = (tmp_path / DROPPED).read_bytes()
    assert list(read_drops(tmp_path / DROPPED)) == ROWS
    write_drops(tmp_path / DROPPED, iter(ROWS))
    assert (tmp_path / DROPPED).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [DROPPED]


def test_an_empty_list_is_no_missing_one(tmp_path):
    with pytest.raises(BlspError, match=r"dropped\.jsonl\.gz: no such file"):
        next(read_drops(tmp_path / DROPPED))
    write_drops(tmp_path / DROPPED, [])
    assert list(read_drops(tmp_path / DROPPED)) == []


def test_a_truncated_list_is_refused(tmp_path):
    write_drops(tmp_path / DROPPED, ROWS)
    path = tmp_path / DROPPED
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(BlspError, match="cannot be read"):
        list(read_drops(tmp_path / DROPPED))
