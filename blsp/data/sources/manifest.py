"""One's own corpus: a JSONL file with one utterance a line.

    {"audio": "clips/0001.flac", "text": "turn on the light", "speaker": "ann", "split": "test", "end_s": 2.5}

`audio` (a path, relative to the manifest, or in S3) and `text` are required. A fault of one row drops that row; a fault
in the manifest's vocabulary, an unknown key or split, stops the run, since every row may have it.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from blsp.data.places import Place, beside, check_file, check_inside
from blsp.data.records import SPLITS, Dropped, Row, Unusable, Utterance, is_id
from blsp.data.sources.reading import is_seconds, is_unicode, shown
from blsp.errors import BlspError

REQUIRED = ("audio", "text")
TEXTS = ("id", "speaker", "language", "split", "licence", "translation", "intent", "answer")
SECONDS = ("start_s", "end_s")
KEYS = REQUIRED + TEXTS + SECONDS


def read(path: Place, audio_root: Place | None = None) -> Iterator[Row]:
    """One record a line, in order, as Utterance or as Dropped with its reason; blank lines are no rows.

    Audio lies in `audio_root` or below, which is the manifest's folder unless it is named. Reasons: not_json,
    missing_key, wrong_type, bad_segment, bad_id, bad_path. Raises BlspError for a missing manifest, an unknown key
    and an unknown split.
    """
    root = audio_root or path.parent
    try:
        check_file(path)
        stream = path.open("rb")
    except OSError as error:
        raise BlspError(f"corpus.sources: {path}: {error.strerror or error}; name a JSONL file") from error
    with stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                yield _utterance(_fields(line, f"{path}, line {number}"), path, root)
            except Unusable as fault:
                yield Dropped(where, fault.reason, f"line {number}: {fault}")


def _fields(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of the JSON, of its UTF-8, or of a number with 5000 digits
        raise Unusable("not_json", str(error)) from error
    if not isinstance(row, dict):
        raise Unusable("not_json", f"expected an object with audio and text, found {shown(row)}")
    for key in row:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0)[0]
            raise BlspError(
                f"{where}: unknown key {key!r}; the nearest valid key is {near!r} (valid: {', '.join(KEYS)})"
            )
    fields = {key: value for key, value in row.items() if value is not None}
    for key in REQUIRED:
        if key not in fields:
            raise Unusable("missing_key", f"{key} is missing")
    for key in ("id", "speaker"):  # corpora number their speakers
        if type(fields.get(key)) is int:
            fields[key] = str(fields[key])
    for key in REQUIRED + TEXTS:
        value = fields.get(key, "")
        if not isinstance(value, str) or not is_unicode(value):
            raise Unusable("wrong_type", f"{key}: expected a string, found {shown(value)}")
    for key in SECONDS:
        value = fields.get(key, 0)
        if not is_seconds(value):
            raise Unusable("wrong_type", f"{key}: expected seconds, found {shown(value)}")
    if fields.get("split", "train") not in SPLITS:
        raise BlspError(f"{where}: unknown split {fields['split']!r}; write one of {', '.join(SPLITS)}")
    return fields


def _utterance(fields: dict[str, Any], manifest: Place, root: Place) -> Utterance:
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
        **optional,
    )


def _id(audio: str, start_s: float | None, end_s: float | None) -> str:
    """A name made of what the row says alone, so that it survives moving and reordering the manifest."""
    digest = hashlib.sha256(f"{audio}\0{start_s or 0:.6f}\0{end_s}".encode()).hexdigest()
    stem = re.sub(r"[^\w-]+", "_", PurePosixPath(audio).stem)[:80] or "audio"
    return f"{stem}-{digest[:12]}"
