import json
import os
import shutil

import pytest

from blsp import files


def names(folder):
    return sorted(os.listdir(folder))


def test_text_is_written_whole_and_its_folder_made(tmp_path):
    path = tmp_path / "reports" / "a.md"
    files.write_text(path, "zwölf\n")
    files.write_text(path, "elf\n")
    assert path.read_bytes() == b"elf\n"
    assert names(path.parent) == ["a.md"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def no_space(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "replace", no_space)
        files.write_json(path, {"new": 2})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"kl": float("nan")})
    assert files.read_json(path) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


def test_json_is_readable_sorted_and_ends_with_a_newline(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": "Küche", "a": [1]})
    text = path.read_text(encoding="utf-8")
    assert text == '{\n  "a": [\n    1\n  ],\n  "b": "Küche"\n}\n'
    assert json.loads(text) == files.read_json(path)


def test_a_folder_takes_its_name_when_the_block_ends_well(tmp_path):
    path = tmp_path / "models" / "adapter"
    for content in ("one", "two"):
        with files.replace_dir(path) as folder:
            (folder / f"{content}.txt").write_text(content)
            assert not (path / f"{content}.txt").exists()
    assert names(path) == ["two.txt"]
    assert names(path.parent) == ["adapter"]


def test_a_block_that_raises_leaves_the_old_folder(tmp_path):
    path = tmp_path / "adapter"
    with files.replace_dir(path) as folder:
        (folder / "old.txt").touch()
    with pytest.raises(RuntimeError, match="killed"), files.replace_dir(path) as folder:
        (folder / "half.txt").touch()
        raise RuntimeError("killed")
    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["adapter"]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    path = tmp_path / "adapter"
    (tmp_path / ".adapter.tmp").mkdir()
    (tmp_path / ".adapter.tmp" / "half.txt").touch()
    with files.replace_dir(path) as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["adapter"]


def test_the_final_name_never_stands_for_a_folder_half_removed(tmp_path, monkeypatch):
    path = tmp_path / "adapter"
    with files.replace_dir(path) as folder:
        (folder / "old.txt").touch()
    removed = []

    def remove(target, **options):
        removed.append(os.fspath(target))
        shutil_rmtree(target, **options)

    shutil_rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", remove)
    with files.replace_dir(path) as folder:
        (folder / "new.txt").touch()
    assert names(path) == ["new.txt"]
    assert removed
    assert str(path) not in removed


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / "adapter"
    with files.replace_dir(path) as folder:
        (folder / "old.txt").touch()
    rename = os.replace

    def refuse_new(source, target):
        if os.fspath(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(OSError, match="Input/output"), files.replace_dir(path):
        pass
    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["adapter"]


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"12")
    (folder / "deep" / "b.bin").write_bytes(b"3")
    return folder


def test_a_digest_is_of_names_and_contents_alone(weights, tmp_path):
    # sha256sum over "NAME\0SHA256\n" of each file in order: other versions must agree on it.
    expected = "adcf07e46e294e5b34fa54f482657f5a66d9dc479449f51f1c69a2975669326c"  # pragma: allowlist secret
    digest = files.sha256_of(weights)
    copy = tmp_path / "elsewhere"
    shutil.copytree(weights, copy)
    os.utime(copy / "a.bin", (1, 1))
    (copy / "empty").mkdir()
    assert files.sha256_of(copy) == digest == expected


@pytest.mark.parametrize("change", ["content", "name", "border", "addition", "removal"])
def test_a_digest_tells_folders_apart(weights, change):
    before = files.sha256_of(weights)
    if change == "content":
        (weights / "deep" / "b.bin").write_bytes(b"4")
    elif change == "name":
        (weights / "a.bin").rename(weights / "c.bin")
    elif change == "border":  # the same bytes, cut elsewhere
        (weights / "a.bin").write_bytes(b"1")
        (weights / "deep" / "b.bin").write_bytes(b"23")
    elif change == "addition":
        (weights / "empty.bin").touch()
    else:
        (weights / "a.bin").unlink()
    assert files.sha256_of(weights) != before


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # pragma: allowlist secret
    assert files.sha256_of(tmp_path / "a") == expected
    with pytest.raises(FileNotFoundError):
        files.sha256_of(tmp_path / "missing")
