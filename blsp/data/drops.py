"""The rows that a stage left out, one by one, in a file beside what it made; reports count them and show the first.

data/corpus/dropped.jsonl.gz          {"id": ..., "source": ..., "reason": ..., "detail": ...}
data/continuations/dropped.jsonl.gz   {"id": ..., "behaviour": ..., "reason": ..., "detail": ...}
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from blsp.data.shards import read_jsonl_gz, write_jsonl_gz
from blsp.errors import BlspError

DROPPED = "dropped.jsonl.gz"


def write_drops(path: str | Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Nothing; `path` then lists the rows, which are taken one at a time: the same bytes for the same rows."""
    write_jsonl_gz(Path(path), rows)


def read_drops(path: str | Path) -> Iterator[dict[str, str]]:
    """The rows that `write_drops` listed, one at a time.

    Raises BlspError where the list is missing, or cannot be read to its end.
    """
    again = f"run the stage that writes {Path(path).parent} again"
    try:
        yield from read_jsonl_gz(Path(path))
    except FileNotFoundError:
        raise BlspError(f"{path}: no such file; {again}") from None
    except (OSError, EOFError, ValueError) as error:
        raise BlspError(f"{path}: cannot be read ({error}); {again}") from None
