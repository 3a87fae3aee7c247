"""GigaSpeech: English audio books, podcasts and YouTube, as segments of long recordings.

    GigaSpeech/GigaSpeech.json     {"audios": [{"aid", "path", ..., "segments": [{"sid", "begin_time", ...}]}]}
    GigaSpeech/audio/youtube/P0000/YOU0000000001.opus

`place` is the folder GigaSpeech: segments of the subset {TEST} go to test, of {DEV} to dev, of {XS} to {XL} to train.
The layout is that of SpeechColab/GigaSpeech (README.md, toolkits/kaldi) and SpeechColab/PySpeechColab. Tags such as
<COMMA>, and segments that hold nothing but <SIL>, <MUSIC>, <NOISE> or <OTHER>, are seen to by `blsp.data.text`.
`lhotse.recipes.prepare_gigaspeech` is not used: it needs speechcolab, which downloads, and stops at a faulty segment.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from blsp.data.records import Dropped, Row, Unusable, Utterance
from blsp.data.sources import reading
from blsp.errors import BlspError

# The scripts are Apache-2.0; the recordings belong to others, and TERMS_OF_ACCESS (beside GigaSpeech.json) lends
# them for non-commercial research and education. SPDX has no name for that.
LICENCE = "LicenseRef-GigaSpeech-Terms-of-Access"

SUBSETS = {
    "test": frozenset({"{TEST}"}),
    "dev": frozenset({"{DEV}"}),
    "train": frozenset({"{XS}", "{S}", "{M}", "{L}", "{XL}"}),
}


def read(place: Path) -> Iterator[Row]:
    """One record a segment, in the file's order, as Utterance or as Dropped with its reason.

    GigaSpeech.json is parsed recording by recording. Reasons: missing_key, wrong_type, not_utf8, bad_id, bad_segment,
    no_subset. Raises BlspError where `place` has no GigaSpeech.json, and where that is broken off, not JSON or empty.
    """
    path = place / "GigaSpeech.json"
    if not path.is_file():
        advice = "name the folder that GigaSpeech is downloaded to, with its audio/ beside that file"
        raise reading.not_found("gigaspeech", place, "GigaSpeech.json", advice)
    number = 0
    for number, recording in _recordings(path):
        yield from _segments(place, recording, f"recording {number}")
    if not number:
        raise BlspError(f'corpus.sources: {path}: no "audios" in it; download it again')


def _recordings(path: Path) -> Iterator[tuple[int, Any]]:
    import ijson

    number = 0
    with path.open("rb") as stream:
        try:
            items = ijson.items(ijson.from_iter(_replaced(stream)), "audios.item", use_float=True)
            for number, recording in enumerate(items, start=1):
                yield number, recording
        except ijson.JSONError as error:
            fault = str(error).partition("\n")[0]
            raise BlspError(
                f"corpus.sources: {path}: broken after {number} recordings ({fault}); download it again"
            ) from error


def _replaced(stream: IO[bytes]) -> Iterator[bytes]:
    """The stream's bytes, those that are not UTF-8 as U+FFFD: one of them would end the parsing of all the rest."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while chunk := stream.read(1 << 16):
        if text := decoder.decode(chunk):  # no bytes at all would mean the end
            yield text.encode()
    yield decoder.decode(b"", final=True).encode()


def _segments(place: Path, recording: Any, where: str) -> Iterator[Row]:
    segments = recording.get("segments") if isinstance(recording, dict) else None
    if not isinstance(segments, list):
        yield Dropped(where, "missing_key", f"{where}: no list of segments")
        return
    for number, segment in enumerate(segments, start=1):
        at = f"{where}, segment {number}"
        try:
            yield _utterance(place, recording, segment)
        except Unusable as fault:
            yield Dropped(at, fault.reason, f"{at}: {fault}")


def _utterance(place: Path, recording: dict[str, Any], segment: Any) -> Utterance:
    if not isinstance(segment, dict):
        raise Unusable("wrong_type", f"expected an object with sid and text_tn, found {type(segment).__name__}")
    start_s, end_s = _seconds(segment, "begin_time"), _seconds(segment, "end_time")
    if not 0 <= start_s < end_s:
        raise Unusable("bad_segment", f"{start_s:g} to {end_s:g} s; expected 0 <= begin_time < end_time")
    speaker = segment.get("speaker", "N/A")
    return Utterance(
        id=reading.file_name(_text(segment, "sid")),
        audio=place / "/".join(reading.file_name(part) for part in _text(recording, "path").split("/")),
        text=_text(segment, "text_tn"),
        speaker=speaker if isinstance(speaker, str) and speaker != "N/A" else None,
        language="en",
        split=_split(segment),
        start_s=start_s,
        end_s=end_s,
        licence=LICENCE,
        source="gigaspeech",
    )


def _split(segment: dict[str, Any]) -> str:
    named = segment.get("subsets")
    if isinstance(named, list):
        for split, subsets in SUBSETS.items():
            if any(name in subsets for name in named if isinstance(name, str)):
                return split
    raise Unusable("no_subset", f"subsets: expected one of {{XS}} to {{XL}}, {{DEV}}, {{TEST}}, found {named!r:.60}")


def _text(fields: dict[str, Any], key: str) -> str:
    text = _value(fields, key)
    if not isinstance(text, str):
        raise Unusable("wrong_type", f"{key}: expected a string, found {type(text).__name__}")
    if "\ufffd" in text:
        raise Unusable("not_utf8", f"{key}: {text[:60]!r}")
    return text


def _seconds(fields: dict[str, Any], key: str) -> float:
    seconds = _value(fields, key)
    if not reading.is_seconds(seconds):
        raise Unusable("wrong_type", f"{key}: expected seconds, found {type(seconds).__name__}")
    return float(seconds)


def _value(fields: dict[str, Any], key: str) -> Any:
    if key not in fields:
        raise Unusable("missing_key", f"{key} is missing")
    return fields[key]
