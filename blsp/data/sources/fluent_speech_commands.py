"""Fluent Speech Commands: 248 English phrases for 31 intents, each spoken by many.

    fluent_speech_commands_dataset/data/{train,valid,test}_data.csv
    fluent_speech_commands_dataset/wavs/speakers/2BqVo8kVB2Skwgyb/0a3129c0-4474-11e9-a9a5-5dbec3b8816a.wav

Layout: the corpus's readme.md and lhotse.recipes.slu, which is not used because it holds the tables and every
audio header in memory, and gives neither speakers nor a bad row's reason.
"""

import csv
import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from blsp.data.records import Row, Unusable, Utterance
from blsp.data.sources import reading
from blsp.errors import BlspError

LICENCE = "Fluent Speech Commands Public License"
SPLITS = {"train": "train", "valid": "dev", "test": "test"}
COLUMNS = ("path", "speakerId", "transcription", "action", "object", "location")


def read(place: Path) -> Iterator[Row]:
    """The recordings of train, valid (dev) and test, row by row; `intent` is action_object_location.

    `place` is fluent_speech_commands_dataset. The official splits share no speaker, but all their phrases: `corpus`
    keeps a phrase where it is held out most, in test. Reasons: not_csv, not_utf8, missing_key, bad_id, bad_path.
    Raises BlspError where a table or one of its columns is missing.
    """
    for name, split in SPLITS.items():
        path = place / "data" / f"{name}_data.csv"
        if not path.is_file():
            raise reading.not_found(
                "fluent_speech_commands",
                place,
                f"data/{path.name}",
                "name the folder fluent_speech_commands_dataset that the corpus unpacks to",
            )
        table = reading.lines(path)
        columns = _columns(path, next(table, (1, b""))[1])
        yield from reading.from_lines(path.name, table, functools.partial(_utterance, place, split, columns))


def _columns(path: Path, header: bytes) -> list[str]:
    try:
        columns = _cells(header)
    except Unusable as fault:
        raise BlspError(f"corpus.sources: {path}, line 1: {fault}; unpack the corpus again") from fault
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise BlspError(
            f"corpus.sources: {path}: no column {', '.join(missing)}, only {', '.join(columns)}; "
            "unpack the corpus again"
        )
    return columns


def _utterance(place: Path, split: str, columns: list[str], line: bytes) -> Iterator[Row]:
    cells = _cells(line)
    if len(cells) != len(columns):
        raise Unusable("not_csv", f"{len(cells)} cells for {len(columns)} columns")
    path, speaker, text, *intent = reading.strings(dict(zip(columns, cells, strict=True)), *COLUMNS, empty=COLUMNS[2:3])
    yield Utterance(
        id=reading.utterance_id(f"{speaker}/{PurePosixPath(path).stem}"),
        audio=reading.inside(place, path),
        text=text,
        speaker=speaker,
        language="en",
        split=split,
        licence=LICENCE,
        intent="_".join(intent),
        source="fluent_speech_commands",
    )


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader([reading.decoded(line)], strict=True))
    except csv.Error as error:
        raise Unusable("not_csv", str(error)) from error
