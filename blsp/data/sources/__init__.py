"""Where speech comes from: one module a corpus, all giving the same records (`blsp.data.records`)."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module

from blsp.data import places
from blsp.data.records import SPLITS, Row, Utterance
from blsp.languages import tag
from blsp.params import Miniature, Source


def rows(source: Source, miniature: Miniature) -> Iterator[Row]:
    """The rows of one source in its own order, as Utterance or as Dropped with the reason: the same every time.

    The module named after the source reads them: `read(place)`, with the folder or file that `path` names, here
    or in S3. Where `splits` is speakers, the rows name none, where it is official_test, none but test. The source's
    `language` and `licence` are those of rows that name none. Raises BlspError where there is nothing of this kind, it
    cannot be read, or S3 does not give it.
    """
    if source.name == "miniature":
        from blsp.miniature.corpus import utterances

        yield from utterances(miniature)
        return
    path = source.path or ""
    options = {"audio_root": places.place(source.audio_root)} if source.audio_root else {}
    with places.explained(path):
        for row in import_module(f"blsp.data.sources.{source.name}").read(places.place(path), **options):
            yield _as_told(row, source) if isinstance(row, Utterance) else row


def _as_told(row: Utterance, source: Source) -> Utterance:
    """The row with what params.yaml says of its source, its language as a tag: `en-US` of en_us."""
    kept = {"official": SPLITS, "official_test": ("test",), "speakers": ()}[source.splits]
    return replace(
        row,
        split=row.split if row.split in kept else None,
        language=tag(row.language or source.language),
        licence=row.licence or source.licence,
    )
