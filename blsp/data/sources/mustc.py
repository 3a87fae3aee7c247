"""MuST-C: English talks with the translation of each sentence into one language, in a folder a language pair.

    en-de/data/{train,dev,tst-COMMON,tst-HE}/wav/ted_767.wav
    en-de/data/train/txt/train.yaml       one segment a line, in this form:
        - {duration: 3.500000, offset: 16.080000, rW: 9, uW: 0, speaker_id: spk.767, wav: ted_767.wav}
    en-de/data/train/txt/train.{en,de}    the sentence and its translation, on the line of the same number

Layout: lhotse.recipes.must_c and fairseq's prep_mustc_data.py. lhotse's is not used because it parses each YAML
file whole, reads every audio header up front and gives one language's text only.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from blsp.data.records import Row, Unusable, Utterance
from blsp.data.sources import reading
from blsp.errors import BlspError

LICENCE = "CC-BY-NC-ND-4.0"
SPLITS = {"train": "train", "dev": "dev", "tst-COMMON": "test", "tst-HE": "test"}
OPTIONAL = "tst-HE"  # of the releases that have it
_PAIR = re.compile(r"([a-z]{2})-([a-z]{2})")

Item = tuple[bytes, bytes, bytes]
"""What belongs to one segment: its YAML, its sentence, its translation."""


def read(place: Path) -> Iterator[Row]:
    """The segments of train, dev, tst-COMMON and tst-HE (both are test), in the order of the YAML files.

    `place` is the folder of one language pair, named en-de or the like. Reasons: not_yaml, missing_key, wrong_type,
    bad_segment, bad_id, bad_path, not_utf8. Raises BlspError where a file is missing, and where the three files
    of a split differ in length: they belong together line by line, and nothing says where the lost line was.
    """
    pair = _PAIR.fullmatch(place.name)
    if not pair or not (place / "data").is_dir():
        raise reading.not_found(
            "mustc",
            place,
            "a language pair, en-de/data or the like,",
            "name the folder en-de that the corpus unpacks to",
        )
    for name, split in SPLITS.items():
        folder = place / "data" / name
        if name == OPTIONAL and not folder.is_dir():
            continue
        path, *texts = (folder / "txt" / f"{name}.{suffix}" for suffix in ("yaml", *pair.groups()))
        parse = functools.partial(_utterance, place.name, folder / "wav", pair[1], split)
        yield from reading.from_lines(path.name, _items(path, *texts), parse)


def _items(segments: Path, sentences: Path, translations: Path) -> Iterator[tuple[int, Item]]:
    """Each segment with its sentence and translation, and the number of its first line."""
    files = _yaml_items(segments), _every_line(sentences), _every_line(translations)
    for segment, sentence, translation in itertools.zip_longest(*files):
        if segment is None or sentence is None or translation is None:
            raise BlspError(
                f"corpus.sources: mustc: {segments}, {sentences.name} and {translations.name} differ in length, "
                "though each segment has one line in each; unpack the corpus again"
            )
        number, yaml = segment
        yield number, (yaml, sentence, translation)


def _yaml_items(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each item, with the number of its first line: the one line it has, or those that follow it indented."""
    first, item = 0, b""
    for number, line in reading.lines(path):
        if line.startswith((b"#", b"---", b"...")):
            continue
        if item and not line[:1].isspace():
            yield first, item
            item = b""
        first, item = (first, item + b"\n" + line) if item else (number, line)
    if item:
        yield first, item


def _every_line(path: Path) -> Iterator[bytes]:
    """The lines, blank ones too: they count."""
    try:
        with path.open("rb") as stream:
            yield from stream
    except OSError as error:
        raise BlspError(f"corpus.sources: {path}: {error.strerror}; unpack the corpus again") from error


def _utterance(pair: str, audio: Path, language: str, split: str, item: Item) -> Iterator[Row]:
    segment, text, translation = _segment(item[0]), reading.decoded(item[1]).strip(), reading.decoded(item[2]).strip()
    wav, speaker = reading.strings(segment, "wav", "speaker_id")
    start_s = reading.seconds(segment.get("offset"), "offset")
    end_s = round(start_s + reading.seconds(segment.get("duration"), "duration"), 6)
    yield Utterance(
        id=reading.segment_id(f"{pair}/{PurePosixPath(wav).stem}", start_s, end_s),
        audio=reading.inside(audio, wav),
        text=text,
        speaker=speaker,
        language=language,
        split=split,
        start_s=start_s,
        end_s=end_s,
        licence=LICENCE,
        translation=translation or None,
        source=f"mustc {pair}",
    )


def _segment(item: bytes) -> dict[str, Any]:
    import yaml

    try:
        # In C it takes 0.2 ms; ruamel.yaml's, in C too, 1.3 ms for so short a document.
        value = yaml.load(reading.decoded(item), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, Unusable):
            raise
        raise Unusable("not_yaml", " ".join(str(error).split())) from error
    if not isinstance(value, list) or len(value) != 1:
        raise Unusable("not_yaml", f"expected one item of a list, found {reading.shown(value)}")
    return reading.mapping(value[0], "the item", "not_yaml")
