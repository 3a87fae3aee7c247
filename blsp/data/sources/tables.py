"""What the readers of corpora share: folders and files found, their lines read, a line's fault a dropped row."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blsp.data.records import Dropped, Row, Unusable, Utterance
from blsp.errors import BlspError

Record = dict[str, str]
"""One row of a table: its values by the names of their columns."""

_NAME = re.compile(r"\w[\w.-]{0,199}")


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, by name; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: entry.name)


def no_corpus(corpus: str, place: Path, wanted: str, advice: str) -> BlspError:
    """The error for a place that is not the corpus: what was looked for, where, and what to do."""
    found = "it holds none" if place.is_dir() else "there is no such folder"
    return BlspError(f"corpus.sources: {corpus}: looked for {wanted} in {place}, but {found}; {advice}")


def read_lines(path: Path, shown: str, utterance: Callable[[str], Utterance]) -> Iterator[Row]:
    """Each line that is not blank, in order: what `utterance` makes of it, or Dropped where it raises Unusable.

    The file is UTF-8; `shown` names it in the ids of dropped rows. Reasons here: not_utf8.
    Raises BlspError where the file cannot be opened.
    """
    return _rows(_numbered(path), shown, utterance)


def read_table(
    path: Path, shown: str, columns: Sequence[str], utterance: Callable[[Record], Utterance]
) -> Iterator[Row]:
    r"""As `read_lines`, for tab-separated values under a header that names at least `columns`.

    Quotation marks are letters, and a backslash makes one of the character after it (`csv.QUOTE_NONE`, as the
    tables of Common Voice and CoVoST are written). Reasons here: not_utf8, not_tsv, wrong_columns.
    Raises BlspError where the file cannot be opened or lacks a column.
    """
    lines = _numbered(path)
    header = _header(path, next(lines, (1, b""))[1], columns)
    return _rows(lines, shown, lambda line: utterance(_record(line, header)))


def file_name(name: str) -> str:
    """The name, where it can be a file's in its folder and an id in a shard. Raises Unusable: bad_id."""
    if not _NAME.fullmatch(name):
        raise Unusable("bad_id", f"{name[:200]!r} cannot name a file; expected letters and digits, _-. between them")
    return name


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise BlspError(f"corpus.sources: {path}: {error.strerror}; make it readable, or unpack it again") from error
    with stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def _rows(lines: Iterator[tuple[int, bytes]], shown: str, utterance: Callable[[str], Utterance]) -> Iterator[Row]:
    for number, line in lines:
        try:
            yield utterance(_decoded(line))
        except Unusable as fault:
            yield Dropped(f"{shown}:{number}", fault.reason, f"line {number}: {fault}")


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("not_utf8", str(error)) from error


def _header(path: Path, line: bytes, columns: Sequence[str]) -> list[str]:
    try:
        header = _fields(_decoded(line))
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
