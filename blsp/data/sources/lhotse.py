"""Cuts that lhotse has described: JSONL manifests of audio in files, and Shar folders with it in tars beside them.

    cuts_train.jsonl.gz                                   audio in files
    train/cuts.000000.jsonl.gz, recording.000000.tar      audio in tars, as `blsp corpus` packs it too

Only the manifests are read here; audio is found when a row is packed. lhotse's own loading is not used: a
manifest may hold a shell command in place of a file.
"""

import functools
import gzip
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from blsp.data import places
from blsp.data.audio import decode
from blsp.data.places import Place
from blsp.data.records import SPLITS, Dropped, Row, Unusable, Utterance, Waveform, is_id, split_named
from blsp.errors import BlspError

if TYPE_CHECKING:
    from lhotse import MonoCut, SupervisionSegment

CUSTOM = ("licence", "translation", "intent", "answer")
# A cut begins at a multiple of its samples' length, give or take what floating point loses.
TOLERANCE_S = 1e-6


def read(place: Place, audio_root: Place | None = None) -> Iterator[Row]:
    """One record a supervision, as Utterance or as Dropped with its reason; a cut that has none is a row too.

    `place` is one manifest, or a folder with any number of `cuts*.jsonl` and `cuts*.jsonl.gz` at any depth,
    read in the order of their names. A split is what the cut's custom field says, else what the file's or a
    folder's name does. Audio lies in `audio_root` or below, which is the folder, or the manifest's, unless it is
    named. Reasons: not_json, not_a_cut, not_mono, no_recording, no_supervision, missing_key, unsupported_audio,
    bad_segment, bad_id, bad_path. Raises BlspError where there is no manifest, or one is broken off.
    """
    manifests = _manifests(place)
    root = audio_root or (place if manifests != [place] else place.parent)
    for manifest in manifests:
        below = manifest.relative_to(cast(Any, place)).parts if manifest != place else ()
        split = next(filter(None, map(split_named, reversed((place.name, *below)))), None)
        for number, line in _lines(manifest):
            yield from _rows(line, f"{manifest.name}:{number}", manifest, root, split)


def _manifests(place: Place) -> list[Place]:
    if place.is_file():
        return [place]
    found: list[Any] = sorted(path for path in place.rglob("*cuts*.jsonl*") if re.search(r"\.jsonl(\.gz)?$", path.name))
    if not found:
        raise BlspError(
            f"corpus.sources: {place}: no lhotse manifest; looked for this file, and for *cuts*.jsonl and "
            "*cuts*.jsonl.gz below it; recordings and supervisions become cuts by `lhotse cut simple`"
        )
    return found


def _lines(manifest: Place) -> Iterator[tuple[int, bytes]]:
    try:
        with manifest.open("rb") as raw:
            packed = manifest.name.endswith(".gz")
            with gzip.GzipFile(fileobj=raw) if packed else raw as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BlspError(f"corpus.sources: {manifest}: broken off or not gzip ({error}); copy it again") from error


def _rows(line: bytes, where: str, manifest: Place, root: Place, split: str | None) -> Iterator[Row]:
    try:
        cut = _cut(line)
        if not cut.supervisions:
            raise Unusable("no_supervision", f"cut {cut.id!r} has no supervision, so nothing says what is spoken")
    except Unusable as fault:
        yield Dropped(where, fault.reason, str(fault))
        return
    for supervision in cut.supervisions:
        try:
            yield _utterance(cut, supervision, manifest, root, split)
        except Unusable as fault:
            yield Dropped(where, fault.reason, f"supervision {supervision.id!r}: {fault}")


def _cut(line: bytes) -> "MonoCut":
    from lhotse import MonoCut
    from lhotse.cut import Cut
    from lhotse.serialization import deserialize_item

    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # of the JSON, of its UTF-8, or of a number with 5000 digits
        raise Unusable("not_json", str(error)) from error
    try:
        cut = deserialize_item(fields)
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise Unusable("not_a_cut", f"{type(error).__name__}: {error}") from error
    if not isinstance(cut, Cut):
        raise Unusable("not_a_cut", f"a {type(cut).__name__}")
    if not isinstance(cut, MonoCut):
        raise Unusable("not_mono", f"a {type(cut).__name__}; only a MonoCut is one sound with its words")
    if cut.recording is None:
        raise Unusable("no_recording", f"cut {cut.id!r} has features at most; samples are needed")
    return cut


def _utterance(
    cut: "MonoCut", supervision: "SupervisionSegment", manifest: Place, root: Place, split: str | None
) -> Utterance:
    id_, text = supervision.id, supervision.text
    if not isinstance(text, str):
        raise Unusable("missing_key", f"text: expected a string, found {text!r}")
    if not isinstance(id_, str) or not is_id(id_):
        raise Unusable("bad_id", f"{id_!r} cannot name a file; use letters and digits, -_./ between them")
    start_s, end_s = cut.start + supervision.start, cut.start + supervision.end
    if start_s < -TOLERANCE_S or end_s <= start_s:
        raise Unusable("bad_segment", f"{start_s:g} to {end_s:g} s of recording {cut.recording_id!r}")
    # What is said of the supervision is nearer to it than what is said of the cut.
    custom: dict[str, Any] = {**(cut.custom or {}), **(supervision.custom or {})}
    known = {key: custom[key] for key in CUSTOM if isinstance(custom.get(key), str) and custom[key]}
    named = custom.get("split")
    return Utterance(
        id=id_,
        text=text,
        speaker=supervision.speaker,
        language=supervision.language,
        split=(named if named in SPLITS else split_named(named)) if isinstance(named, str) else split,
        source=custom["source"] if isinstance(custom.get("source"), str) else manifest.name,
        **_sound(cut, manifest, root, max(start_s, 0.0), end_s),
        **known,
    )


def _sound(cut: "MonoCut", manifest: Place, root: Place, start_s: float, end_s: float) -> dict[str, Any]:
    """The audio, start_s and end_s of an Utterance."""
    recording = cut.recording
    source = next((one for one in recording.sources if cut.channel in one.channels), None)
    if source is None:
        raise Unusable("unsupported_audio", f"no source of {recording.id!r} has channel {cut.channel}")
    if recording.transforms:
        raise Unusable("unsupported_audio", f"{recording.id!r} is changed when read; store it by `save_audios`")
    channel = source.channels.index(cut.channel) if len(source.channels) > 1 else None
    if source.type == "shar":
        tar = manifest.with_name(re.sub(r"\.jsonl(\.gz)?$", ".tar", manifest.name.replace("cuts", "recording", 1)))
        return {"audio": functools.partial(_from_tar, str(tar), cut.id, start_s, end_s, channel)}
    if source.type != "file":
        raise Unusable("unsupported_audio", f"{source.type!r} as the source of {recording.id!r}, not file or shar")
    file = _beside(manifest, source.source)
    places.check_inside(root, file, source.source)
    if channel is None:
        return {"audio": file, "start_s": start_s, "end_s": end_s}
    return {"audio": functools.partial(_decoded, file, start_s, end_s, channel)}


def _beside(manifest: Place, file: str) -> Place:
    """Where a relative path leads: from the manifest, else from the working folder, as lhotse itself has it."""
    found = places.beside(manifest, file)
    return Path(os.path.normpath(file)) if isinstance(found, Path) and not os.path.exists(found) else found


def _decoded(audio: bytes | Place, start_s: float, end_s: float, channel: int | None) -> Waveform:
    return Waveform(*decode(audio, start_s, end_s, channel=channel))


def _from_tar(tar: str, id_: str, start_s: float, end_s: float, channel: int | None) -> Waveform:
    try:
        stream, members = _opened(tar)
        offset, size = members[id_]
        stream.seek(offset)
        content = stream.read(size)
    except FileNotFoundError as error:
        raise Unusable("missing_file", f"{tar}: no such file") from error
    except KeyError as error:
        raise Unusable("missing_file", f"{tar}: holds no audio of {id_!r}") from error
    except (tarfile.TarError, OSError) as error:
        raise Unusable("undecodable", f"{tar}: {error}") from error
    if len(content) < size:
        raise Unusable("undecodable", f"{tar}: broken off in the audio of {id_!r}")
    return _decoded(content, start_s, end_s, channel)


@functools.lru_cache(maxsize=1)  # rows come shard by shard
def _opened(tar: str) -> tuple[BinaryIO, dict[str, tuple[int, int]]]:
    """The tar, and where in it the audio of each cut begins and how long it is, in bytes."""
    with places.explained(tar), places.place(tar).open("rb") as found:
        # A copy from S3 loses its name when `found` is closed, and its space when this is.
        stream = open(found.name, "rb")  # noqa: SIM115
    members = {}
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if name.suffix not in (".json", ".nodata", ".nometa"):
                members[str(name.parent / name.stem)] = (member.offset_data, member.size)
    return stream, members
