"""Speech in Hugging Face `datasets`, streamed: from the Hub, or a folder of parquet files or of audio.

    google/fleurs?config=de_de&revision=70bb2e84b976b7e960aa89f1c648e09c59f894dd
    /corpora/mine

Columns are found by name. Audio comes as it is stored and is decoded here; no code of a dataset is ever run.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from blsp.data.audio import decode
from blsp.data.records import Audio, Dropped, Row, Unusable, Utterance, Waveform, split_named
from blsp.errors import BlspError

COLUMNS = {
    "audio": ("audio", "speech", "sound"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text", "raw_transcription"),
    "speaker": ("speaker_id", "speaker", "client_id"),
    "language": ("language", "locale"),
    "licence": ("licence", "license"),
    "translation": ("translation",),
    "intent": ("intent", "intent_class"),
    "answer": ("answer",),
}
"""What an Utterance takes, and the columns it is looked for in: the first that is there."""


def read(place: Path) -> Iterator[Row]:
    """One record a row, split by split, as Utterance or as Dropped with its reason: missing_key, wrong_type,
    other_split.

    `place` is owner/name on the Hub, or a folder; ?config= and &revision= may follow. A split's name says train,
    dev (validation) or test; rows of one that says none are dropped, since what the owner set aside (`other`,
    `invalidated`) is not known to be good. Where there is one split alone, its rows name none. Ids count the rows
    of a split. Raises BlspError where there is no such dataset, or it lacks a column.
    """
    name, options = _named(place)
    found = _load(place, name, options)
    label = Path(name).name if Path(name).is_dir() else name
    label = re.sub(r"[^\w.]+", "-", "-".join(filter(None, (label, options.get("config"))))).strip("-.")
    for split_name, dataset in found.items():
        split = split_named(split_name)
        columns = _columns(dataset, name)
        for number, row in enumerate(_streamed(dataset, columns, name)):
            id_ = f"{label}-{split_name}-{number:08d}"
            try:
                if split is None and len(found) > 1:
                    raise Unusable("other_split", f"split {split_name!r} is none of train, validation and test")
                fields = _fields(row)
                yield Utterance(id=id_, split=split if len(found) > 1 else None, source=name, **fields)
            except Unusable as fault:
                yield Dropped(id_, fault.reason, f"row {number} of {split_name}: {fault}")


def _named(place: Path) -> tuple[str, dict[str, str]]:
    """The dataset's name or folder, and what follows it."""
    name, _, query = str(place).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    valid = ("config",) if Path(name).is_dir() else ("config", "revision")
    wrong = sorted(options.keys() - set(valid))
    if wrong:
        raise BlspError(f"corpus.sources: {place}: unknown {', '.join(wrong)}; what may follow: {', '.join(valid)}")
    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BlspError(f"corpus.sources: {name}: no such folder, and no name of a dataset; write owner/name")
    return name, options


def _load(place: Path, name: str, options: Mapping[str, str]) -> "Mapping[str, Any]":
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise BlspError("corpus.sources: huggingface needs `datasets`; pip install 'blsp[huggingface]'") from error
    try:
        found: Mapping[str, Any] = load_dataset(
            name, options.get("config"), revision=options.get("revision"), streaming=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BlspError(
            f"corpus.sources: {place}: looked for a folder of parquet or audio files here, else for a dataset of "
            f"that name on the Hub (?config= chooses one of several): {error}"
        ) from error
    return found


def _columns(dataset: Any, name: str) -> dict[str, str]:
    """The dataset's column of each field that it has."""
    from datasets import Audio

    features = dataset.features or {}
    names = list(features) or list(next(iter(dataset), {}))
    columns = {field: [one for one in wanted if one in names] for field, wanted in COLUMNS.items()}
    sounds = [one for one in features if isinstance(features[one], Audio)]
    columns["audio"] = [one for one in columns["audio"] if one in sounds or isinstance(features.get(one), dict)]
    columns["audio"] += sounds
    for field in ("audio", "text"):
        if not columns[field]:
            raise BlspError(
                f"corpus.sources: {name}: no column with {field} among {', '.join(names)}; expected one of "
                f"{', '.join(COLUMNS[field])}" + (" that holds audio files" if field == "audio" else "")
            )
    return {field: found[0] for field, found in columns.items() if found}


def _streamed(dataset: Any, columns: Mapping[str, str], name: str) -> Iterator[dict[str, Any]]:
    """The rows under our names, audio as {"bytes", "path"}, labels as words."""
    from datasets import Audio, ClassLabel

    class Stored(Audio):
        """An audio column as it is stored: datasets' own asks for torchcodec even where nothing is decoded."""

        def encode_example(self, value: Any) -> dict[str, Any]:
            return {"bytes": None, "path": value} if isinstance(value, str) else value

    labels = {field: dataset.features[column] for field, column in columns.items()}
    try:
        for row in dataset.decode(False).cast_column(columns["audio"], Stored(decode=False)):
            found = {field: row[column] for field, column in columns.items()}
            for field, feature in labels.items():
                if isinstance(feature, ClassLabel) and found[field] is not None:
                    found[field] = feature.int2str(found[field]) if found[field] >= 0 else None
            yield found
    except (OSError, ValueError, TypeError) as error:
        raise BlspError(f"corpus.sources: {name}: cannot be read on: {error}") from error


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["text"] is None:
        raise Unusable("missing_key", "text is missing")
    fields: dict[str, Any] = {"text": row["text"], "audio": _audio(row["audio"] or {})}
    for field in row.keys() - fields.keys():  # corpora number their speakers
        fields[field] = str(row[field]) if type(row[field]) is int else row[field] or None
    for field in fields.keys() - {"audio"}:
        if not isinstance(fields[field], str | None):
            raise Unusable("wrong_type", f"{field}: expected a string, found {type(fields[field]).__name__}")
    return fields


def _audio(stored: Mapping[str, Any]) -> Audio:
    content, path = stored.get("bytes"), stored.get("path")
    if content is not None:
        return bytes(content)
    if not path:
        raise Unusable("missing_key", "audio is missing")
    return functools.partial(_fetched, path) if "://" in path else Path(path)


def _fetched(path: str) -> Waveform:
    """The sound of a file on the Hub or in an archive: zip://0.wav::/corpora/mine/train.zip."""
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise Unusable("missing_file", f"{path}: no such file") from error
    return Waveform(*decode(content))
