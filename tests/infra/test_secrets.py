"""The file of secrets: fresh, private, never written over."""

import stat

import pytest

from blsp.errors import BlspError
from infra.secrets import TEMPLATE, main, read_variables, write_private, write_secrets


def test_they_are_fresh_and_nobody_elses(tmp_path):
    for name in ("one", "two"):
        write_secrets(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    one, two = (read_variables(tmp_path / name) for name in ("one", "two"))
    assert list(one) == [line[:-1] for line in TEMPLATE.read_text().splitlines() if line.endswith("=")]
    values = [*one.values(), *two.values()]
    assert len(set(values)) == len(values) and all(value.isalnum() and len(value) >= 32 for value in values)


def test_the_template_itself_starts_nothing():
    with pytest.raises(BlspError, match=r"\.env\.example, line 5: must be NAME=value"):
        read_variables(TEMPLATE)


def test_those_that_are_there_stay(tmp_path, capsys):
    write_secrets(tmp_path / "env")
    before = (tmp_path / "env").read_text()
    assert main([str(tmp_path / "env")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "env").read_text() == before and [path.name for path in tmp_path.iterdir()] == ["env"]


def test_what_replaces_is_private_too(tmp_path):
    (tmp_path / "env").write_text("old")
    (tmp_path / "env").chmod(0o644)
    write_private(tmp_path / "env", "new")
    assert stat.S_IMODE((tmp_path / "env").stat().st_mode) == 0o600 and (tmp_path / "env").read_text() == "new"
