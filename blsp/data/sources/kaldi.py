"""Kaldi data folders: tables of `<id> <value>` lines, of recordings, transcripts, speakers, segments.

    speechocean762/train/wav.scp      000010011 train/audio/000010011.opus
    speechocean762/train/text         000010011 WE CALL IT BEAR
    speechocean762/train/utt2spk      000010011 0001
    .../segments                      utterance recording 1.25 3.5        where recordings are longer than utterances
    .../utt2lang                      utterance en                        where languages differ

Read as lhotse.kaldi.load_kaldi_data_dir reads them, which is not used because it opens every recording for its length,
makes commands of wav.scp into audio, and stops at the first bad line. spk2gender, utt2dur, reco2dur and features hold
nothing that is packed.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from blsp.data import places
from blsp.data.places import Place
from blsp.data.records import Dropped, Row, Unusable, Utterance, split_named
from blsp.data.sources import reading

SCRIPT = "wav.scp"
_NO_PATH = re.compile(r"^/|^s3://|^\||^$|\|$|\0")  # nor what is absolute

Table = dict[str, str | Unusable]
"""The values by id; in place of one that cannot be read, why."""


def read(place: Place, audio_root: Place | None = None) -> Iterator[Row]:
    """The utterances of one data folder, or of the data folders in `place` by name, in the order of their `text`.

    A folder's name says the split (train_960, dev, eval2000). Audio lies in `audio_root` or below: unless it is named,
    in the folder that holds the data folders. Relative paths start at the data folder, at one above it, or at the root:
    wherever the first of them is found. Nothing in wav.scp is run: its commands are dropped. Reasons: not_utf8,
    wrong_columns, duplicate_id, no_recording, no_transcript, command, unsupported_audio, bad_segment, wrong_type,
    bad_id, bad_path.
    Raises BlspError where there is no data folder, or one has no text.
    """
    alone = (place / SCRIPT).is_file()
    folders = [place] if alone else [folder for folder in _subfolders(place) if (folder / SCRIPT).is_file()]
    if not folders:
        raise reading.not_found(
            "kaldi", place, f"{SCRIPT}, here and in its folders", "name a data folder, or the folder of several"
        )
    for folder in folders:
        if not (folder / "text").is_file():
            raise reading.not_found("kaldi", folder, "text", "transcripts are needed; take the folder away, or add it")
        yield from _folder(folder, audio_root or (place.parent if alone else place), place.name)


def _folder(folder: Place, root: Place, source: str) -> Iterator[Row]:
    name = folder.name
    tables = [_table(folder / file) for file in (SCRIPT, "text", "utt2spk", "segments", "utt2lang")]
    recordings, texts, speakers, segments, languages = tables
    segmented = (folder / "segments").is_file()
    base = _base(folder, root, recordings)
    split = split_named(name) or ("test" if re.match("eval", name, re.IGNORECASE) else None)
    spoken = segments if segmented else recordings
    for id_ in dict.fromkeys([*texts, *spoken, *speakers]):
        try:
            for said in (table.get(id_) for table in tables):
                if isinstance(said, Unusable):
                    raise said
            text = _value(texts, id_, "no_transcript", "text", may_be_empty=True)
            segment = _value(spoken, id_, "no_recording", "segments" if segmented else SCRIPT)
            recording, start_s, end_s = _segment(segment) if segmented else (id_, None, None)
            file = _value(recordings, recording, "no_recording", SCRIPT)
            yield Utterance(
                id=reading.utterance_id(id_),
                audio=_audio(file, recording, base, root),
                text=text,
                speaker=_value(speakers, id_, "", "utt2spk") if id_ in speakers else None,
                language=_value(languages, id_, "", "utt2lang") if id_ in languages else None,
                split=split,
                start_s=start_s,
                end_s=end_s,
                source=source,
            )
        except Unusable as fault:
            yield Dropped(f"{name}/{id_}"[:200], fault.reason, str(fault))


def _subfolders(place: Place) -> list[Any]:
    if not place.is_dir():
        return []
    return sorted((entry for entry in place.iterdir() if entry.is_dir()), key=lambda entry: entry.name)


def _table(path: Any) -> Table:
    """The values by id, empty where there is no such file; of an id that is there twice, the first is taken."""
    table: Table = {}
    found: str | Unusable
    if not path.is_file():
        return table
    for number, line in reading.lines(path):
        where, (key, *value) = f"{path.name}:{number}", line.split(maxsplit=1)
        id_ = key.decode("utf-8", errors="replace")
        if id_ in table:
            id_, found = where, Unusable("duplicate_id", f"{where}: {reading.shown(id_)} is there twice")
        else:
            try:
                reading.decoded(key)
                found = reading.decoded(value[0]).strip() if value else ""
            except Unusable as fault:
                found = Unusable(fault.reason, f"{where}: {fault}")
        table[id_] = found
    return table


def _value(table: Table, id_: str, reason: str, name: str, may_be_empty: bool = False) -> str:
    """What the table says of the id. Raises Unusable: of the line, `reason` where there is none, wrong_columns."""
    if id_ not in table:
        raise Unusable(reason, f"{reading.shown(id_)} is not in {name}")
    value = table[id_]
    if isinstance(value, Unusable):  # a recording's
        raise value
    if not value and not may_be_empty:
        raise Unusable("wrong_columns", f"{name} says nothing of {reading.shown(id_)}")
    return value


def _segment(line: str) -> tuple[str, float, float | None]:
    """The recording, and where in it the utterance begins and ends, in seconds; an end of -1 is the recording's."""
    fields = line.split()
    if len(fields) != 3:
        raise Unusable("wrong_columns", f"segments: expected recording, start and end, found {reading.shown(line)}")
    start_s, end_s = (reading.seconds(value, key) for value, key in zip(fields[1:], ("start", "end"), strict=True))
    if start_s < 0 or (end_s != -1 and end_s <= start_s):
        raise Unusable("bad_segment", f"{start_s:g} to {end_s:g} s; expected 0 <= start < end, or an end of -1")
    return fields[0], start_s, None if end_s == -1 else end_s


def _audio(file: str, recording: str, base: Place, root: Place) -> Place:
    if file.endswith("|") or file.startswith("|"):
        raise Unusable(
            "command",
            f"{SCRIPT} has a command for {reading.shown(recording)}, which is not run: {file!r}; run it yourself, and "
            "name the file that it makes",
        )
    if file == "-" or re.search(r"\.ark:\d+$", file):
        raise Unusable("unsupported_audio", f"{file!r} for {reading.shown(recording)}; expected a file of its own")
    if "\0" in file:
        raise Unusable("bad_path", f"{reading.shown(file)} names no file")
    found = _joined(base, file)
    places.check_inside(root, found, file)
    return found


def _base(folder: Place, root: Place, recordings: Table) -> Place:
    """Where relative paths start: the data folder, one above it up to the root, or the root.

    Decided by the first file that is there, of the first 20; the data folder where none is.
    """
    bases = [folder, *(parent for parent in folder.parents if _is_in(parent, root)), root]
    relative = (file for file in recordings.values() if isinstance(file, str) and not _NO_PATH.search(file))
    for file in islice(relative, 20):
        for base in bases:
            found: Any = _joined(base, file)
            try:
                places.check_inside(root, found, file)
            except Unusable:
                continue
            if found.is_file():
                return base
    return folder


def _is_in(place: Place, root: Place) -> bool:
    own, above = PurePosixPath(str(place)), PurePosixPath(str(root))
    return own == above or above in own.parents


def _joined(base: Place, file: str) -> Place:
    """The file that a line means, from `base` where it is relative."""
    return places.beside(base / SCRIPT, file)
