"""Whole files or none: everything is written under a temporary name and renamed."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SCRATCH_VARIABLE = "BLSP_SCRATCH"


def write_text(path: str | Path, text: str) -> None:
    """Nothing; afterwards `path` holds exactly `text`, or what it held before if anything failed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """As write_text, for bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Nothing; afterwards `path` holds `value` as readable JSON with sorted keys. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The value a JSON file holds."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def replace_dir(path: str | Path) -> Iterator[Path]:
    """A fresh folder that takes the name `path` when the block ends well, and is removed when it raises.

    What a killed process left under the temporary name is cleared first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        # Removing takes time: a folder half removed must not have the final name either.
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def scratch_folder() -> Path:
    """The folder for what may be lost without loss: BLSP_SCRATCH, or `blsp` in the user's cache folder."""
    if chosen := os.environ.get(SCRATCH_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blsp"


def sha256_of(path: str | Path, files: Iterable[Path] | None = None) -> str:
    """The SHA-256 of a file, or of a folder: of its files' relative names and contents, in sorted order.

    `files` are those of the folder that count; by default all. Raises FileNotFoundError where nothing is there.
    """
    path = Path(path)
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if not path.is_dir():
        raise FileNotFoundError(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*") if files is None else files):
        if not file.is_file():
            continue
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()
