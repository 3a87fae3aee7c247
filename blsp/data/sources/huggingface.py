"""Speech in Hugging Face `datasets`, streamed: from the Hub, or a folder of parquet files or of audio.

    google/fleurs?config=de_de&revision=70bb2e84b976b7e960aa89f1c648e09c59f894dd
    /corpora/mine
    s3://bucket/mine                  parquet files alone

Columns are found by name. Audio comes as it is stored and is decoded here; no code of a dataset is ever run.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from blsp.data.audio import decode
from blsp.data.places import Place, check_inside
from blsp.data.records import Audio, Dropped, Row, Unusable, Utterance, Waveform, split_named
from blsp.errors import BlspError

if TYPE_CHECKING:
    from cloudpathlib import S3Path

Parts = Iterator[tuple[str, Any]]
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


def read(place: Place) -> Iterator[Row]:
    """One record a row, split by split, as Utterance or as Dropped with its reason.

    `place` is owner/name on the Hub, or a folder, here or in S3; ?config= and &revision= may follow. A split's
    name says train, dev (validation) or test; rows of one that says none are dropped, since what the owner set
    aside (`other`, `invalidated`) is not known to be good. Where there is one split alone, its rows name none.
    Ids count the rows of a split. Audio lies in the folder, if this is one, or on the Hub. Reasons: missing_key,
    wrong_type, other_split, bad_path. Raises BlspError where there is no such dataset, or it lacks a column.
    """
    name, options = _named(place)
    label = Path(name).name if name.startswith("s3://") or Path(name).is_dir() else name
    label = re.sub(r"[^\w.]+", "-", "-".join(filter(None, (label, options.get("config"))))).strip("-.")
    split_names, parts = _load(place, name, options) if isinstance(place, Path) else _fetch(place)
    numbers = dict.fromkeys(split_names, 0)
    for split_name, dataset in parts:
        split = split_named(split_name)
        for row in _streamed(dataset, _columns(dataset, name), name):
            number = numbers[split_name]
            numbers[split_name] += 1
            id_ = f"{label}-{split_name}-{number:08d}"
            try:
                if split is None and len(numbers) > 1:
                    raise Unusable("other_split", f"split {split_name!r} is none of train, validation and test")
                fields = _fields(row, Path(name))
                yield Utterance(id=id_, split=split if len(numbers) > 1 else None, source=name, **fields)
            except Unusable as fault:
                yield Dropped(id_, fault.reason, f"row {number} of {split_name}: {fault}")


def _named(place: Place) -> tuple[str, dict[str, str]]:
    """The dataset's name or folder, and what follows it."""
    name, _, query = str(place).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    in_s3 = not isinstance(place, Path)
    valid = () if in_s3 else ("config",) if Path(name).is_dir() else ("config", "revision")
    wrong = sorted(options.keys() - set(valid))
    if wrong:
        may = " and ".join(valid) or "nothing"
        raise BlspError(f"corpus.sources: {place}: unknown {', '.join(wrong)}; what may follow: {may}")
    if not in_s3 and not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BlspError(f"corpus.sources: {name}: no such folder, and no name of a dataset; write owner/name")
    return name, options


def _load(place: Path, name: str, options: Mapping[str, str]) -> tuple[list[str], Parts]:
    """The names of the splits, and each with its rows, of a folder here or of a dataset on the Hub."""
    try:
        found = _datasets().load_dataset(name, options.get("config"), revision=options.get("revision"), streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise BlspError(
            f"corpus.sources: {place}: looked for a folder of parquet or audio files here, else for a dataset of "
            f"that name on the Hub (?config= chooses one of several): {error}"
        ) from error
    return list(found), iter(found.items())


def _fetch(place: "S3Path") -> tuple[list[str], Parts]:
    """The same of parquet files in S3, of which one at a time is here."""
    files = sorted(place.rglob("*.parquet"))
    if not files:
        raise BlspError(f"corpus.sources: {place}: looked for *.parquet at any depth; there is none")
    below = [reversed(file.relative_to(place).parts) for file in files]
    splits = [next(filter(None, map(split_named, parts)), "unnamed") for parts in below]

    def parts() -> Parts:
        for split, file in zip(splits, files, strict=True):
            with file.open("rb") as copy:
                found = _datasets().load_dataset("parquet", data_files={split: copy.name}, streaming=True)
                yield split, found[split]

    return splits, parts()


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise BlspError("corpus.sources: huggingface needs `datasets`; pip install 'blsp[huggingface]'") from error
    return datasets


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


def _fields(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if row["text"] is None:
        raise Unusable("missing_key", "text is missing")
    fields: dict[str, Any] = {"text": row["text"], "audio": _audio(row["audio"] or {}, folder)}
    for field in row.keys() - fields.keys():  # corpora number their speakers
        fields[field] = str(row[field]) if type(row[field]) is int else row[field] or None
    for field in fields.keys() - {"audio"}:
        if not isinstance(fields[field], str | None):
            raise Unusable("wrong_type", f"{field}: expected a string, found {type(fields[field]).__name__}")
    return fields


def _audio(stored: Mapping[str, Any], folder: Path) -> Audio:
    content, path = stored.get("bytes"), stored.get("path")
    if content is not None:
        return bytes(content)
    if not path:
        raise Unusable("missing_key", "audio is missing")
    file = path.rpartition("::")[2]  # the archive, of what lies in one: zip://0.wav::/corpora/mine/train.zip
    if not file.startswith(("hf://", "https://")):
        check_inside(folder, Path(os.path.normpath(file)), path)
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
