"""The pictures in docs/: a real browser takes them, and says where a page is not as it should be."""

import re
import struct
from pathlib import Path

import pytest

from blsp.errors import BlspError
from docs import screenshots
from docs.screenshots import Shot

DOCS = Path(__file__).parents[2] / "docs"


def size_px(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def page(folder: Path, html: str) -> str:
    (folder / "page.html").write_text(f"<!doctype html><title>Page</title>{html}")
    return (folder / "page.html").as_uri()


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        screenshots.find_browser()
    except BlspError as error:
        pytest.skip(f"{error} Nothing that pip installs brings one.")
    monkeypatch.setattr(screenshots, "SETTLE_S", 0)
    monkeypatch.setattr(screenshots, "APPEAR_LIMIT_S", 20)


@pytest.mark.usefixtures("browser")
def test_a_page_becomes_a_picture_of_the_wanted_size_once_it_shows_what_it_is_about(tmp_path: Path) -> None:
    url = page(tmp_path, "<script>setTimeout(() => document.body.append('late words'), 500)</script>")
    (taken,) = screenshots.take([Shot("late", url, "late words", 432)], tmp_path / "images")
    assert taken == tmp_path / "images/late.png"
    assert size_px(taken.read_bytes()) == (screenshots.WIDTH_PX, 432)


@pytest.mark.usefixtures("browser")
def test_a_page_without_its_words_or_with_errors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = page(tmp_path, "<p>words</p><script>missing()</script>")
    with pytest.raises(BlspError, match="console says: .*missing"):
        screenshots.take([Shot("broken", broken, "words", ours=True)], tmp_path)
    monkeypatch.setattr(screenshots, "APPEAR_LIMIT_S", 1)
    with pytest.raises(BlspError, match="does not show 'other'"):
        screenshots.take([Shot("broken", broken, "other")], tmp_path)
    assert not (tmp_path / "broken.png").exists()


def test_without_a_browser_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert screenshots.main([]) == 1
    assert "apt-get install chromium" in capsys.readouterr().err


def test_the_pictures_are_those_that_are_spoken_of_and_small() -> None:
    spoken_of = set(re.findall(r"\]\((images/[^)]+)\)", (DOCS / "pages.md").read_text(encoding="utf-8")))
    there = {path.relative_to(DOCS).as_posix(): path.read_bytes() for path in (DOCS / "images").iterdir()}
    assert spoken_of == set(there)
    assert all(len(png) <= 200_000 and size_px(png)[0] == screenshots.WIDTH_PX for png in there.values())
