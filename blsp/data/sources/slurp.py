"""SLURP: English requests to a home assistant, several recordings a sentence, with scenario and action.

    slurp/dataset/slurp/{train,devel,test}.jsonl     one sentence a line, with its recordings
    slurp/dataset/slurp/metadata.json                who spoke each recording
    slurp/audio/slurp_real/audio-1434542201-headset.flac

Layout: README.md and scripts/download_audio.sh of github.com/pswietojanski/slurp; lhotse has no recipe.
train_synthetic.jsonl, spoken by machines, is not read.
"""

import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from blsp.data.records import Dropped, Row, Unusable, Utterance
from blsp.data.sources import reading
from blsp.errors import BlspError

LICENCE = "CC-BY-NC-4.0 AND CC-BY-4.0"  # the audio, and the text
SPLITS = {"train": "train", "devel": "dev", "test": "test"}


def read(place: Path) -> Iterator[Row]:
    """The recordings of train, devel (dev) and test, sentence by sentence; `intent` is scenario_action.

    `place` is the repository with the audio unpacked in it. Each recording's speaker is held in memory, since
    metadata.json is one JSON value; a recording that it does not name has none. Reasons: not_json, not_utf8,
    missing_key, wrong_type, no_recordings, bad_id, bad_path. Raises BlspError where a file or the folder of audio
    is missing.
    """
    folder, audio = place / "dataset" / "slurp", place / "audio" / "slurp_real"
    paths = {folder / f"{name}.jsonl": split for name, split in SPLITS.items()}
    metadata = folder / "metadata.json"
    for path in (*paths, metadata):
        if not path.is_file():
            raise reading.not_found(
                "slurp", place, f"dataset/slurp/{path.name}", "name the clone of github.com/pswietojanski/slurp"
            )
    if not audio.is_dir():
        raise reading.not_found("slurp", place, "audio/slurp_real", "unpack slurp_real.tar.gz in its folder audio")
    speakers = _speakers(metadata)
    for path, split in paths.items():
        yield from reading.from_lines(
            path.name, reading.lines(path), functools.partial(_recordings, audio, split, speakers)
        )


def _speakers(path: Path) -> dict[str, str]:
    """The speaker of each audio file."""
    sentences = reading.json_document(path)
    try:
        return {
            name: recording["usrid"]
            for sentence in sentences.values()
            for name, recording in sentence["recordings"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise BlspError(
            f"corpus.sources: {path}: expected recordings with a usrid for each sentence "
            f"({type(error).__name__}: {error}); clone the repository again"
        ) from error


def _recordings(audio: Path, split: str, speakers: dict[str, str], line: bytes) -> Iterator[Row]:
    sentence = reading.json_object(line)
    text, scenario, action = reading.strings(sentence, "sentence", "scenario", "action", empty=("sentence",))
    recordings = sentence.get("recordings")
    if not isinstance(recordings, list) or not recordings:
        raise Unusable("no_recordings", f"slurp_id {sentence.get('slurp_id')}: nobody spoke {text!r}")
    for number, recording in enumerate(recordings):
        try:
            (name,) = reading.strings(reading.mapping(recording, "the recording"), "file")
            yield Utterance(
                id=reading.utterance_id(PurePosixPath(name).stem),
                audio=reading.inside(audio, name),
                text=text,
                speaker=speakers.get(name),
                language="en",
                split=split,
                licence=LICENCE,
                intent=f"{scenario}_{action}",
                source="slurp",
            )
        except Unusable as fault:  # of one recording; the sentence's others stay
            where = f"slurp_id {sentence.get('slurp_id')}, recording {number}"
            yield Dropped(where, fault.reason, f"{where}: {fault}")
