"""What the readers of public corpora share: lines that become rows, and the checks of one row's fields."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from blsp.data.places import Place, check_file
from blsp.data.records import Dropped, Row, Unusable, is_id
from blsp.errors import BlspError

Item = TypeVar("Item")

_NAME = re.compile(r"\w[\w.-]{0,199}")
_NOT_RELATIVE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|[/\\]")  # C:\, s3://, /etc, \\server


def not_found(source: str, place: Place, wanted: str, remedy: str) -> BlspError:
    """The error for a place that is no such corpus: what was looked for, where, and what to do."""
    found = "it holds none" if place.is_dir() else "there is no such folder"
    return BlspError(f"corpus.sources: {source}: looked for {wanted} in {place}, but {found}; {remedy}")


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, by name; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: entry.name)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number from 1; a line ends at \\n alone, as the corpora count them.

    Raises BlspError where the file cannot be opened.
    """
    try:
        check_file(path)
        stream = path.open("rb")
    except OSError as error:
        raise BlspError(f"corpus.sources: {path}: {error.strerror}; unpack the corpus again") from error
    with stream:
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def from_lines(
    name: str, numbered: Iterable[tuple[int, Item]], parse: Callable[[Item], Iterable[Row]]
) -> Iterator[Row]:
    """What `parse` makes of each numbered item; one it refuses (Unusable) is Dropped under `name:number`."""
    for number, item in numbered:
        try:
            yield from parse(item)
        except Unusable as fault:
            yield Dropped(f"{name}:{number}", fault.reason, f"{name}, line {number}: {fault}")


def decoded(line: bytes) -> str:
    """The line's text. Raises Unusable (not_utf8)."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("not_utf8", str(error)) from error


def json_object(line: bytes) -> dict[str, Any]:
    """The object on a line of JSON. Raises Unusable (not_utf8, not_json)."""
    try:
        return mapping(json.loads(decoded(line)), "the line", "not_json")
    except (ValueError, RecursionError) as error:  # of the JSON, or of a number with 5000 digits
        if isinstance(error, Unusable):
            raise
        raise Unusable("not_json", str(error)) from error


def json_document(path: Path) -> Any:
    """The contents of a JSON file that has no lines to read one by one. Raises BlspError."""
    try:
        with path.open("rb") as stream:
            return json.load(stream)
    except OSError as error:
        raise BlspError(f"corpus.sources: {path}: {error.strerror}; unpack the corpus again") from error
    except (ValueError, RecursionError) as error:  # of the JSON, or of its UTF-8
        raise BlspError(f"corpus.sources: {path} is not JSON ({error}); unpack the corpus again") from error


def mapping(value: Any, name: str, reason: str = "wrong_type") -> dict[str, Any]:
    """The value, if it is an object. Raises Unusable."""
    if not isinstance(value, dict):
        raise Unusable(reason, f"{name}: expected an object, found {shown(value)}")
    return value


def strings(fields: Mapping[str, Any], *keys: str, empty: Sequence[str] = ()) -> list[str]:
    """The values of `keys`, in order; those in `empty` may be "". Raises Unusable (missing_key, wrong_type)."""
    for key in keys:
        value = fields.get(key)
        if value is None or (value == "" and key not in empty):
            raise Unusable("missing_key", f"{key} is missing")
        if not isinstance(value, str) or not is_unicode(value):
            raise Unusable("wrong_type", f"{key}: expected a string, found {shown(value)}")
    return [fields[key] for key in keys]


def seconds(value: Any, key: str) -> float:
    """The value as seconds, from a number or from its digits. Raises Unusable (missing_key, wrong_type)."""
    if value is None:
        raise Unusable("missing_key", f"{key} is missing")
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Unusable("wrong_type", f"{key}: expected seconds, found {shown(value)}")
    return found


def is_seconds(value: Any) -> bool:
    """Whether the value is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of 400 digits
        return False


def segment_id(recording: str, start_s: float, end_s: float) -> str:
    """A segment's name, recording-start-end in milliseconds. Raises Unusable (bad_segment, bad_id)."""
    if not 0 <= start_s < end_s:
        raise Unusable("bad_segment", f"{start_s:g} to {end_s:g} s; expected 0 <= start < end")
    return utterance_id(f"{recording}-{round(start_s * 1000):08d}-{round(end_s * 1000):08d}")


def utterance_id(name: str) -> str:
    """The name, if it can be an utterance's id. Raises Unusable (bad_id)."""
    if not is_id(name):
        raise Unusable("bad_id", f"{shown(name)} cannot name a file; use letters and digits, -_./ between them")
    return name


def file_name(name: str) -> str:
    """The name, where it can be a file's in its folder and an id in a shard. Raises Unusable (bad_id)."""
    if not _NAME.fullmatch(name):
        raise Unusable("bad_id", f"{name[:200]!r} cannot name a file; expected letters and digits, _-. between them")
    return name


def inside(folder: Path, name: str) -> Path:
    """The file that a row names, which lies in the folder or below. Raises Unusable (bad_path)."""
    if not name or "\0" in name or _NOT_RELATIVE.match(name) or ".." in PurePosixPath(name).parts:
        raise Unusable("bad_path", f"{shown(name)} does not lie in {folder}")
    return folder / name


def is_unicode(text: str) -> bool:
    """Whether a file can hold the text: JSON can write half of a surrogate pair, which none can."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: Any) -> str:
    """The value and its type, for a message: short, whatever it is."""
    found = repr(value)
    return f"{found if len(found) <= 60 else found[:57] + '...'} ({type(value).__name__})"
