"""Mozilla Common Voice: sentences in many languages, read aloud by volunteers.

    cv-corpus-17.0-2024-03-15/cy/train.tsv     client_id  path  sentence  ...  locale  segment
    cv-corpus-17.0-2024-03-15/cy/clips/common_voice_cy_17277450.mp3

`place` is a release, or one language's folder of it: train.tsv goes to train, dev.tsv to dev and test.tsv to test.
validated.tsv, of which these three are the part that repeats no sentence, is not read, nor are the other tables.
The layout is that of common-voice/cv-dataset, datasets/scripted-speech/README.md; quoting that of CorporaCreator.
`lhotse.recipes.prepare_commonvoice` is not used: it opens every audio file, and leaves out those that are missing.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from blsp.data.records import SPLITS, Row, Utterance
from blsp.data.sources import reading, tables

LICENCE = "CC0-1.0"


def read(place: Path) -> Iterator[Row]:
    """One record a table row, by language, split and line, as Utterance or as Dropped with its reason.

    The language is the row's `locale`; releases before the fifth have none, and there it is the folder's name.
    Reasons: not_utf8, not_tsv, wrong_columns, bad_id. Raises BlspError where `place` has none of the tables, and
    for a table without the columns client_id, path and sentence.
    """
    languages = [folder for folder in (place, *reading.subfolders(place)) if any(_tables(folder))]
    if not languages:
        wanted = "train.tsv, dev.tsv or test.tsv"
        advice = "name a language's folder of a release, or the release's folder with the languages in it"
        raise reading.not_found("common_voice", place, wanted, advice)
    for folder in languages:
        for split, path in _tables(folder):
            columns = ("client_id", "path", "sentence")
            shown = f"{folder.name}/{path.name}"
            yield from tables.read_table(path, shown, columns, partial(_utterance, folder, split))


def clip(folder: Path, name: str) -> Path:
    """The clip that a table's `path` names; the first releases leave out .mp3. Raises Unusable: bad_id."""
    file = reading.file_name(name)
    return folder / "clips" / (file if file.endswith(".mp3") else f"{file}.mp3")


def _tables(folder: Path) -> Iterator[tuple[str, Path]]:
    for split in SPLITS:
        path = folder / f"{split}.tsv"
        if path.is_file():
            yield split, path


def _utterance(folder: Path, split: str, record: tables.Record) -> Utterance:
    audio = clip(folder, record["path"])
    return Utterance(
        id=audio.stem,
        audio=audio,
        text=record["sentence"],
        speaker=record["client_id"] or None,
        language=record.get("locale") or folder.name,
        split=split,
        licence=LICENCE,
        source="common_voice",
    )
