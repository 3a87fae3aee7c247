"""CoVoST 2: Common Voice 4 with translations, from 21 languages into English and from English into 15.

    de/covost_v2.de_en.train.tsv     path  sentence  translation  client_id
    de/clips/common_voice_de_17277450.mp3

`place` is a language's folder of Common Voice with the tables of CoVoST's get_covost_splits.py beside its clips, or
the folder of several such: *.train.tsv goes to train, *.dev.tsv to dev and *.test.tsv to test.
The layout is that of facebookresearch/covost, README.md. lhotse has no recipe for it.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from blsp.data.records import SPLITS, Row, Unusable, Utterance
from blsp.data.sources import reading, tables
from blsp.data.sources.common_voice import clip

LICENCE = "CC0-1.0"

_TABLE = re.compile(rf"covost_v2\.([\w-]+)_([\w-]+)\.({'|'.join(SPLITS)})\.tsv")


def read(place: Path) -> Iterator[Row]:
    """One record a table row, by folder, table and line, as Utterance or as Dropped with its reason.

    A clip is there once for each language it is translated into, so the id ends in that language: "...-de".
    Reasons: not_utf8, not_tsv, wrong_columns, bad_id, empty_translation. Raises BlspError where `place` has none of
    the tables, and for a table without one of its four columns.
    """
    found = [(folder, path) for folder in (place, *reading.subfolders(place)) for path in _tables(folder)]
    if not found:
        wanted = "tables such as covost_v2.de_en.train.tsv"
        advice = "make them beside clips/ with get_covost_splits.py from covost_v2.de_en.tsv and validated.tsv"
        raise reading.not_found("covost2", place, wanted, advice)
    for folder, path in found:
        columns = ("path", "sentence", "translation", "client_id")
        yield from tables.read_table(path, path.name, columns, partial(_utterance, folder, path.name))


def _tables(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    tables_here = (path for path in folder.glob("covost_v2.*.tsv") if _TABLE.fullmatch(path.name))
    return sorted(tables_here, key=lambda path: path.name)


def _utterance(folder: Path, table: str, record: tables.Record) -> Utterance:
    match = _TABLE.fullmatch(table)
    assert match, table
    language, target, split = match.groups()
    audio = clip(folder, record["path"])
    if not record["translation"].strip():
        raise Unusable("empty_translation", f"{record['path']} has no translation")
    return Utterance(
        id=f"{audio.stem}-{target}",
        audio=audio,
        text=record["sentence"],
        speaker=record["client_id"] or None,
        language=language,
        split=split,
        licence=LICENCE,
        translation=record["translation"],
        source="covost2",
    )
