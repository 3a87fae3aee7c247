"""One's own corpus: a manifest with one utterance a row, as JSON lines, CSV or TSV.

    {"audio": "clips/0001.flac", "text": "turn on the light", "speaker": "ann", "split": "test", "end_s": 2.5}

`audio` (a path, relative to the manifest, or in S3) and `text` are required. Keys of other tools are known by their
names there (`audio_filepath`, `offset` and `duration` of NeMo); any other key is ignored, and counted. A fault of one
row drops that row; an unknown split stops the run, since every row may have it.
"""

import contextlib
import csv
import difflib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from blsp.data.places import Place, beside, check_file, check_inside
from blsp.data.records import SPLITS, Dropped, Row, Unusable, Utterance, is_id, split_named
from blsp.data.sources.reading import is_seconds, is_unicode, seconds, shown
from blsp.errors import BlspError

REQUIRED = ("audio", "text")
TEXTS = ("id", "speaker", "language", "split", "licence", "translation", "intent", "answer")
SECONDS = ("start_s", "end_s")
KEYS = REQUIRED + TEXTS + SECONDS
ALIASES = {
    "audio_filepath": "audio",
    "path": "audio",
    "sentence": "text",
    "transcript": "text",
    "transcription": "text",
    "speaker_id": "speaker",
    "lang": "language",
    "license": "licence",
    "offset": "start_s",
}
DURATION = "duration"
"""NeMo's, s: where there is an offset, the segment's; without one, the whole file's, which is measured anyway."""
TABLES = (".csv", ".tsv")

Fields = dict[str, Any]


def read(path: Place, audio_root: Place | None = None) -> Iterator[Row]:
    """One record a row, in order, as Utterance or as Dropped with its reason; blank lines are no rows.

    A name that ends in .csv or .tsv is a table with a header, any other JSON lines. Audio lies in `audio_root` or
    below, which is the manifest's folder unless it is named. Reasons: not_json, not_csv, not_utf8, wrong_columns,
    missing_key, wrong_type, bad_segment, bad_id, bad_path. Raises BlspError for a missing manifest, a table without
    header, and an unknown split.
    """
    root = audio_root or path.parent
    try:
        check_file(path)
        stream = path.open("rb")
    except OSError as error:
        raise BlspError(f"corpus.sources: {path}: {error.strerror or error}; name a manifest, JSONL or CSV") from error
    with stream:
        table = path.suffix.lower() in TABLES
        for number, found in _table(stream, path) if table else _lines(stream):
            try:
                fields, ignored = _fields(_json(found) if isinstance(found, bytes) else _cells(found))
                yield _utterance(fields, ignored, path, root, f"{path}, line {number}")
            except Unusable as fault:
                yield Dropped(f"{path.name}:{number}", fault.reason, f"line {number}: {fault}")


def near(key: str) -> str:
    """The known key that is most like it."""
    return difflib.get_close_matches(key, KEYS, n=1, cutoff=0)[0]


def _lines(stream: Any) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line


def _table(stream: Any, path: Place) -> Iterator[tuple[int, Fields | Unusable]]:
    """The rows of a table by the names in its header, with the numbers of their last lines; or what is wrong with one.

    CSV is read by the rules of spreadsheets; in TSV a quotation mark is a letter, unless it is around a whole cell.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    with contextlib.closing(text):
        first = text.readline()
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
        rules: Fields = {"delimiter": delimiter, "strict": True}
        if delimiter == "\t":
            rules["quoting"] = csv.QUOTE_NONE
        header = [_unquoted(name).strip() for name in next(csv.reader([first], **rules), [])]
        if not {ALIASES.get(name, name) for name in header} >= set(REQUIRED):
            raise BlspError(
                f"corpus.sources: {path}: no column {' or '.join(REQUIRED)} in the header, which names "
                f"{', '.join(filter(None, header)) or 'nothing'}; write it into the first line"
            )
        rows = csv.reader(text, **rules)
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield rows.line_num + 1, Unusable("not_csv", str(error))
                continue
            if not any(cells):
                continue
            found: Fields | Unusable = dict(zip(header, map(_unquoted, cells), strict=False))
            if len(cells) != len(header):
                found = Unusable("wrong_columns", f"{len(cells)} cells for {len(header)} columns")
            yield rows.line_num + 1, found


def _unquoted(cell: str) -> str:
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if whole else cell


def _cells(row: Fields | Unusable) -> Fields:
    """The row of a table, what is empty left out, seconds as numbers."""
    if isinstance(row, Unusable):
        raise row
    found: Fields = {key: value for key, value in row.items() if key and value.strip()}
    if not all(map(is_unicode, found.values())):
        raise Unusable("not_utf8", "the row is not in UTF-8; save the table in it")
    for key in found:
        if key == DURATION or ALIASES.get(key, key) in SECONDS:
            found[key] = seconds(found[key], key)
    return found


def _json(line: bytes) -> Fields:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of the JSON, of its UTF-8, or of a number with 5000 digits
        raise Unusable("not_json", str(error)) from error
    if not isinstance(row, dict):
        raise Unusable("not_json", f"expected an object with audio and text, found {shown(row)}")
    return row


def _fields(row: Fields) -> tuple[Fields, tuple[str, ...]]:
    """What the row says by known keys, and the keys that are none. Raises Unusable (missing_key, wrong_type)."""
    said = {key: value for key, value in row.items() if value is not None}
    fields = {key: said[key] for key in KEYS if key in said}
    for other, key in ALIASES.items():
        if other in said:
            fields.setdefault(key, said[other])
    ignored = tuple(key for key in said if key not in KEYS and key != DURATION and key not in ALIASES)
    for key in REQUIRED:
        if key not in fields:
            raise Unusable("missing_key", f"{key} is missing; the row has {', '.join(map(str, said)) or 'nothing'}")
    for key in ("id", "speaker"):  # corpora number their speakers
        if type(fields.get(key)) is int:
            fields[key] = str(fields[key])
    for key in REQUIRED + TEXTS:
        value = fields.get(key, "")
        if not isinstance(value, str) or not is_unicode(value):
            raise Unusable("wrong_type", f"{key}: expected a string, found {shown(value)}")
    for key, value in [(key, fields.get(key, 0)) for key in SECONDS] + [(DURATION, said.get(DURATION, 0))]:
        if not is_seconds(value):
            raise Unusable("wrong_type", f"{key}: expected seconds, found {shown(value)}")
    if "offset" in said and DURATION in said:
        fields.setdefault("end_s", fields["start_s"] + said[DURATION])
    return fields, ignored


def _utterance(fields: Fields, ignored: tuple[str, ...], manifest: Place, root: Place, where: str) -> Utterance:
    if fields.get("split"):
        split = split_named(fields["split"])
        if split is None:
            raise BlspError(f"{where}: unknown split {fields['split']!r}; write one of {', '.join(SPLITS)}")
        fields["split"] = split
    start_s, end_s = fields.get("start_s"), fields.get("end_s")
    if (start_s or 0) < 0 or (end_s is not None and end_s <= (start_s or 0)):
        raise Unusable("bad_segment", f"{start_s or 0:g} to {end_s} s; expected 0 <= start_s < end_s")
    if not fields["audio"] or "\0" in fields["audio"]:
        raise Unusable("missing_key", f"audio: expected a path, found {shown(fields['audio'])}")
    optional = {key: fields[key] for key in TEXTS if fields.get(key)}
    optional.setdefault("id", _id(fields["audio"], start_s, end_s))
    if not is_id(optional["id"]):
        raise Unusable(
            "bad_id",
            f"{shown(optional['id'])} cannot name a file; use letters and digits, -_./ between them",
        )
    audio = beside(manifest, fields["audio"])
    check_inside(root, audio, fields["audio"])
    return Utterance(
        audio=audio,
        text=fields["text"],
        start_s=start_s,
        end_s=end_s,
        source=manifest.name,
        ignored=ignored,
        **optional,
    )


def _id(audio: str, start_s: float | None, end_s: float | None) -> str:
    """A name made of what the row says alone, so that it survives moving and reordering the manifest."""
    digest = hashlib.sha256(f"{audio}\0{start_s or 0:.6f}\0{end_s}".encode()).hexdigest()
    stem = re.sub(r"[^\w-]+", "_", PurePosixPath(audio).stem)[:80] or "audio"
    return f"{stem}-{digest[:12]}"
