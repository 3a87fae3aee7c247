"""LibriSpeech and Mini LibriSpeech (openslr.org/12 and /31): English audio books, read aloud.

    LibriSpeech/dev-clean/84/121123/84-121123.trans.txt     84-121123-0000 GO DO YOU HEAR
    LibriSpeech/dev-clean/84/121123/84-121123-0000.flac     subset / reader / chapter

`place` is the folder LibriSpeech, with one subset or several: train-* goes to train, dev-* to dev and test-* to
test, "clean" and "other" alike. The layout is that of the corpus's README.TXT.
`lhotse.recipes.prepare_librispeech` is not used: it opens every audio file and holds all rows at once.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from blsp.data.records import Dropped, Row, Unusable, Utterance
from blsp.data.sources import reading

LICENCE = "CC-BY-4.0"

_SUBSET = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")


def read(place: Path) -> Iterator[Row]:
    """One record a transcript line, by subset, reader, chapter and line, as Utterance or as Dropped with its reason.

    Readers are numbered per corpus, so the speaker is "librispeech-84". Reasons: not_utf8, bad_id, and
    missing_transcripts for a chapter's folder without its transcripts. Raises BlspError where `place` has no subset.
    """
    subsets = [folder for folder in reading.subfolders(place) if _SUBSET.fullmatch(folder.name)]
    if not subsets:
        wanted = "subsets such as train-clean-100, dev-clean, test-other"
        advice = "name the folder LibriSpeech that its archives unpack to"
        raise reading.not_found("librispeech", place, wanted, advice)
    for subset in subsets:
        for reader in reading.subfolders(subset):
            for chapter in reading.subfolders(reader):
                yield from _chapter(subset.name, reader.name, chapter)


def _chapter(subset: str, reader: str, chapter: Path) -> Iterator[Row]:
    transcripts = chapter / f"{reader}-{chapter.name}.trans.txt"
    shown = f"{subset}/{reader}/{chapter.name}/{transcripts.name}"
    if transcripts.is_file():
        parse = partial(_utterances, subset, reader, chapter)
        yield from reading.from_lines(shown, reading.lines(transcripts), parse)
    else:
        yield Dropped(shown, "missing_transcripts", f"{transcripts}: no such file; unpack {subset} again")


def _utterances(subset: str, reader: str, chapter: Path, line: bytes) -> Iterator[Utterance]:
    text_line = reading.decoded(line)
    id_, *text = text_line.split(maxsplit=1) or [""]
    if not re.fullmatch(rf"{re.escape(reader)}-{re.escape(chapter.name)}-\d+", id_, re.ASCII):
        raise Unusable("bad_id", f"expected {reader}-{chapter.name}-0000 and a transcript, found {text_line[:60]!r}")
    yield Utterance(
        id=id_,
        audio=chapter / f"{id_}.flac",
        text="".join(text),
        speaker=f"librispeech-{reader}",
        language="en",
        split=subset.partition("-")[0],
        licence=LICENCE,
        source="librispeech",
    )
