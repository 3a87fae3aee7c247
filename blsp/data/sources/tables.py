"""What the readers of corpora in tab-separated tables share."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blsp.data.records import Row, Unusable, Utterance
from blsp.data.sources import reading
from blsp.errors import BlspError

Record = dict[str, str]
"""One row of a table: its values by the names of their columns."""


def read_table(
    path: Path, name: str, columns: Sequence[str], utterance: Callable[[Record], Utterance]
) -> Iterator[Row]:
    r"""Each row in order: what `utterance` makes of it, or Dropped under `name` where it raises Unusable.

    The header names at least `columns`. Quotation marks are letters, and a backslash makes one of the character
    after it (`csv.QUOTE_NONE`, as the tables of Common Voice and CoVoST are written). Reasons here: not_utf8,
    not_tsv, wrong_columns. Raises BlspError where the file cannot be opened or lacks a column.
    """
    lines = reading.lines(path)
    header = _header(path, next(lines, (1, b""))[1], columns)
    yield from reading.from_lines(name, lines, lambda line: [utterance(_record(reading.decoded(line), header))])


def _header(path: Path, line: bytes, columns: Sequence[str]) -> list[str]:
    try:
        header = _fields(reading.decoded(line))
    except Unusable as fault:
        raise BlspError(f"corpus.sources: {path}, header: {fault}; unpack the corpus again") from fault
    missing = [column for column in columns if column not in header]
    if missing:
        raise BlspError(
            f"corpus.sources: {path}: no column {', '.join(missing)}; the header names {', '.join(header) or 'none'}; "
            "unpack the corpus again, or name the folder of another release"
        )
    return header


def _record(line: str, header: list[str]) -> Record:
    fields = _fields(line)
    if len(fields) != len(header):
        raise Unusable("wrong_columns", f"{len(fields)} columns, where the header names {len(header)}")
    return dict(zip(header, fields, strict=True))


def _fields(line: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"), [])
    except csv.Error as error:
        raise Unusable("not_tsv", str(error)) from error
