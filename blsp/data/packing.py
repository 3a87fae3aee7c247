"""One shard of the corpus from its rows: decoded, judged, encoded. The same here, in another process, elsewhere.

<staging>/train.000012/recording.000000.tar, cuts.000000.jsonl.gz    absent where no row was kept
<staging>/train.000012/tally.json                                    stored last, with size and SHA-256 of the others
"""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsp.data import audio, fingerprints, quality, recogniser, shards
from blsp.data.records import Audio, Dropped, Unusable, Utterance
from blsp.errors import BlspError
from blsp.files import read_json, write_json
from blsp.params import Corpus
from blsp.staging import Contents, NotWhole, Staging

TALLY = "tally.json"

Samples = NDArray[np.float32]
Drops = list[tuple[int, Dropped]]
"""Rows' places in the source and why they are not there."""


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard to be: `places` are theirs in the source, `unwanted` those to leave out, by id.

    `witness` is a file of the rows that is there for the run, and must be for whoever packs them.
    """

    split: str
    number: int
    rows: tuple[Utterance, ...]
    places: tuple[int, ...]
    unwanted: Mapping[str, Dropped] = field(default_factory=dict)
    witness: Path | None = None


@dataclass(frozen=True)
class Tally:
    """What became of a shard's rows.

    `places` are those of the rows kept, `prints` what they sound like; `dropped` are pairs of a row's place and why it
    is not there; `files` are the shard's, by name, none where no row was kept.
    """

    split: str
    number: int
    seconds: float
    speakers: list[str]
    places: list[int]
    dropped: Drops
    prints: list[fingerprints.Print]
    files: dict[str, Contents]

    @property
    def rows(self) -> int:
        """How many were kept."""
        return len(self.prints)


def pack_shard(shard: ShardRows, settings: Corpus, staging: Staging) -> Tally:
    """The shard's tally; its files are in `staging`, as they will be in the corpus.

    A shard that is there already, of the same rows and whole, is kept as it is.
    Raises BlspError where this machine does not have the files that the run has.
    """
    if shard.witness and not shard.witness.exists():
        raise BlspError(
            f"{shard.witness}: {socket.gethostname()} has no such file, but the run's own machine has: workers must "
            "have the sources under the same names; mount them there, or keep them in S3"
        )
    staging, key = staging.at(shard_name(shard.split, shard.number)), shard_key(shard)
    with staging.workspace() as folder:
        if found := _finished(staging, key, folder):
            return _tally(shard, found)
        dropped: Drops = []
        kept: list[fingerprints.Print] = []
        seconds, speakers = 0.0, set()
        with shards.ShardWriter(folder, max(len(shard.rows), 1)) as writer:
            for row, samples in _agreed(_usable(shard, settings, dropped), settings, dropped):
                cut = shards.make_cut(row, shard.split, samples.size, settings.sampling_rate_hz)
                writer.write(cut, shards.encode_flac(samples, settings.sampling_rate_hz))
                kept.append(fingerprints.print_of(row.id, samples, settings.sampling_rate_hz, row.translation))
                seconds += samples.size / settings.sampling_rate_hz
                speakers |= {row.speaker} if row.speaker else set()
        dropped.sort(key=itemgetter(0))
        tally = {
            "key": key,
            "seconds": seconds,
            "speakers": sorted(speakers),
            "dropped": [[place, row.id, row.reason, row.detail] for place, row in dropped],
            "prints": [one.as_list() for one in kept],
        }
        return _tally(shard, store_shard(tally, folder, staging))


def store_shard(tally: dict[str, Any], folder: Path, staging: Staging) -> dict[str, Any]:
    """The tally with what the shard's files hold: they have moved from `folder` to `staging`, and then the tally."""
    tally |= {"files": {path.name: astuple(staging.store(path, path.name)) for path in sorted(folder.iterdir())}}
    write_json(folder / TALLY, tally | {"seal": _seal(tally)})
    staging.store(folder / TALLY, TALLY)
    return tally


def shard_name(split: str, number: int) -> str:
    """Under which name the files of a shard are staged."""
    return f"{split}.{number:06d}"


def _finished(staging: Staging, key: str, folder: Path) -> dict[str, Any] | None:
    """The tally of a shard of these rows that is there whole; None where it is to be done."""
    try:
        staging.fetch(TALLY, folder / TALLY)
    except NotWhole:
        return None
    try:
        found: dict[str, Any] = read_json(folder / TALLY)
    except ValueError:  # cut, where a machine went down before its disk had all
        return None
    finally:
        (folder / TALLY).unlink()
    if found.pop("seal", None) != _seal(found) or found["key"] != key:
        return None
    return (
        found if all(staging.contents(name) == Contents(*wanted) for name, wanted in found["files"].items()) else None
    )


def _seal(tally: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tally, sort_keys=True).encode()).hexdigest()


def usable_samples(utterance: Utterance, settings: Corpus) -> Samples:
    """The samples (N,) at the corpus's rate, of a plausible length and loudness. Raises Unusable."""
    samples = audio.load(utterance, settings.sampling_rate_hz, settings.max_duration_s)
    quality.check_length(samples, utterance.text, settings)
    quality.check_sound(samples, settings)
    return samples


def _usable(shard: ShardRows, settings: Corpus, dropped: Drops) -> Iterator[tuple[int, Utterance, Samples]]:
    """The rows with their places and samples, but for those that go to `dropped`."""
    for place, row in zip(shard.places, shard.rows, strict=True):
        if row.id in shard.unwanted:
            dropped.append((place, shard.unwanted[row.id]))
            continue
        try:
            samples = usable_samples(row, settings)
        except Unusable as fault:
            dropped.append((place, Dropped(row.id, fault.reason, str(fault))))
            continue
        yield place, row, samples


def _agreed(
    found: Iterator[tuple[int, Utterance, Samples]], settings: Corpus, dropped: Drops
) -> Iterator[tuple[Utterance, Samples]]:
    """The rows that the recogniser does not contradict; all, where there is none."""
    if settings.recogniser is None:
        yield from ((row, samples) for _, row, samples in found)
        return
    while batch := list(islice(found, recogniser.BATCH)):
        faults = recogniser.faults([row for _, row, _ in batch], [samples for *_, samples in batch], settings)
        for (place, row, samples), fault in zip(batch, faults, strict=True):
            if fault:
                dropped.append((place, Dropped(row.id, fault.reason, str(fault))))
            else:
                yield row, samples


def _tally(shard: ShardRows, found: dict[str, Any]) -> Tally:
    gone = {place for place, *_ in found["dropped"]}
    return Tally(
        split=shard.split,
        number=shard.number,
        seconds=found["seconds"],
        speakers=found["speakers"],
        places=[place for place in shard.places if place not in gone],
        dropped=[(place, Dropped(*row)) for place, *row in found["dropped"]],
        prints=[fingerprints.Print.from_list(one) for one in found["prints"]],
        files={name: Contents(*contents) for name, contents in found["files"].items()},
    )


def shard_key(shard: ShardRows) -> str:
    """A digest of the rows: with settings and code, which name `staging`, all that decides what the shard holds."""
    what = [[vars(row) | {"audio": _identity(row.audio)} for row in shard.rows], shard.places, sorted(shard.unwanted)]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _identity(source: Audio) -> str:
    """What tells a row's audio from another: a file's size and time of change, or what a function is called with."""
    if isinstance(source, Path):
        try:
            status = source.stat()
        except OSError:
            return str(source)
        return f"{source} {status.st_size} {status.st_mtime_ns}"
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, partial):
        return f"{source.func.__module__}.{source.func.__qualname__} {source.args!r} {source.keywords!r}"
    return repr(source)
