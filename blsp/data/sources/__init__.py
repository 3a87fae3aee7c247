"""Where speech comes from: one module a corpus, all giving the same records (`blsp.data.records`)."""

from collections.abc import Iterator
from importlib import import_module

from blsp.data import places
from blsp.data.records import Row
from blsp.params import Miniature, Source


def rows(source: Source, miniature: Miniature) -> Iterator[Row]:
    """The rows of one source in its own order, as Utterance or as Dropped with the reason: the same every time.

    The module named after the source reads them: `read(place)`, with the folder or file that `path` names, here
    or in S3. Raises BlspError where there is nothing of this kind, or S3 does not give it.
    """
    if source.name == "miniature":
        from blsp.miniature.corpus import utterances

        yield from utterances(miniature)
        return
    path = source.path or ""
    with places.explained(path):
        yield from import_module(f"blsp.data.sources.{source.name}").read(places.place(path))
