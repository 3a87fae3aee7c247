"""SNIPS: requests to lights and to a speaker, close to the microphone and played from two metres (Saade et al. 2018).

    snips_slu_data_v1.0/smart-lights-en-close-field/dataset.json                     intents, and the sentences of each
    snips_slu_data_v1.0/smart-lights-en-close-field/speech_corpus/metadata.json      {"1": {filename, text, worker}}
    snips_slu_data_v1.0/smart-lights-en-close-field/speech_corpus/audio/1.wav
    snips_slu_data_v1.0/smart-speaker-en-close-field/{training,test}_dataset.json
    snips_slu_data_v1.0/smart-speaker-en-close-field/metadata.json                   [{path_file, text}]

Layout: README.md and dataset_handler.py (CrossValDataset, TrainTestDataset) of
github.com/sonos/spoken-language-understanding-research-datasets; lhotse has no recipe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from blsp.data.records import Dropped, Row, Unusable, Utterance
from blsp.data.sources import reading
from blsp.errors import BlspError

LICENCE = "Sonos Crowdsourced Data License Terms"
LIGHTS = ("dataset.json",)
SPEAKER = ("test_dataset.json", "training_dataset.json")
SPLITS = {"test_dataset.json": "test", "training_dataset.json": "train", "dataset.json": None}


@dataclass
class _Query:
    """A sentence that was written to be spoken."""

    intent: str
    split: str | None
    recorded: bool = False


def read(place: Path) -> Iterator[Row]:
    """The recordings of each set in order of their names, then the sentences that nobody spoke, as no_recording.

    `place` is snips_slu_data_v1.0, or one set of it: smart-lights-en-close-field. The official splits are
    the speaker's training (train) and test; the lights have none, being meant for cross-validation: there whole
    workers are assigned. Close and far field are the same voices and sentences. A set, at most some thousand
    sentences, is held in memory: its files are one JSON value each. Reasons: no_recording, missing_key, wrong_type,
    bad_id, bad_path. Raises BlspError where there is no set, or a file of one is missing or no JSON.
    """
    sets = [place] if _is_set(place) else _sets(place)
    if not sets:
        raise reading.not_found(
            "snips",
            place,
            "a set (dataset.json or test_dataset.json, in the folder itself or in smart-*-field)",
            "name the folder snips_slu_data_v1.0 that the corpus unpacks to, or one set in it",
        )
    for folder in sets:
        yield from _rows(folder)


def _is_set(folder: Path) -> bool:
    return (folder / LIGHTS[0]).is_file() or (folder / SPEAKER[0]).is_file()


def _sets(place: Path) -> list[Path]:
    return [folder for folder in sorted(place.glob("smart-*-field"), key=lambda path: path.name) if _is_set(folder)]


def _rows(folder: Path) -> Iterator[Row]:
    lights = (folder / LIGHTS[0]).is_file()
    language, queries = _queries(folder, LIGHTS if lights else SPEAKER)
    corpus = folder / "speech_corpus" if lights else folder
    for name, recording in _recordings(corpus / "metadata.json"):
        try:
            fields = reading.mapping(recording, "the recording")
            file, text = reading.strings(fields, "filename" if lights else "path_file", "text", empty=("text",))
            query = queries.get(_spoken(text))
            if query:
                query.recorded = True
            yield Utterance(
                id=reading.utterance_id(f"{folder.name}/{PurePosixPath(file).stem}"),
                audio=reading.inside(corpus / "audio" if lights else corpus, file),
                text=_spoken(text),
                speaker=_worker(fields),
                language=language,
                split=query.split if query else None,
                licence=LICENCE,
                intent=query.intent if query else None,
                source=f"snips {folder.name}",
            )
        except Unusable as fault:
            where = f"{folder.name}/metadata.json, {name}"
            yield Dropped(where, fault.reason, f"{where}: {fault}")
    for text, query in queries.items():
        if not query.recorded:
            yield Dropped(f"{folder.name}: {text}"[:200], "no_recording", f"{folder.name}: no recording of {text!r}")


def _queries(folder: Path, names: tuple[str, ...]) -> tuple[str, dict[str, _Query]]:
    """The language of the set and its sentences; one of test and training both is of test."""
    language, queries = "", dict[str, _Query]()
    for name in names:
        path = folder / name
        dataset = reading.json_document(path)
        try:
            language = dataset["language"]
            for intent, content in dataset["intents"].items():
                for utterance in content["utterances"]:
                    text = _spoken("".join(chunk["text"] for chunk in utterance["data"]))
                    queries.setdefault(text, _Query(intent, SPLITS[name]))
        except (AttributeError, KeyError, TypeError) as error:
            raise BlspError(
                f"corpus.sources: {path}: expected language and intents with utterances, whose data have text "
                f"({type(error).__name__}: {error}); unpack the corpus again"
            ) from error
    return language, queries


def _recordings(path: Path) -> Iterator[tuple[str, Any]]:
    recordings = reading.json_document(path)
    if isinstance(recordings, dict):
        yield from recordings.items()
    elif isinstance(recordings, list):
        yield from ((f"entry {number}", recording) for number, recording in enumerate(recordings))
    else:
        raise BlspError(f"corpus.sources: {path}: expected the recordings, found {reading.shown(recordings)}")


def _worker(recording: dict[str, Any]) -> str | None:
    worker = recording.get("worker")
    speaker = worker.get("id") if isinstance(worker, dict) else None
    return str(speaker) if speaker not in (None, "") else None


def _spoken(text: str) -> str:
    return " ".join(text.split())
