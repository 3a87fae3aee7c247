"""Which of PostgreSQL's programs are taken, and what is said where there are none."""

import shutil

import pytest

from blsp.errors import BlspError
from infra import postgresql


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of one version with these programs; those of this machine are not seen."""
    monkeypatch.setattr(postgresql, "PACKAGES", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")

    def make(version, *programs):
        folder = tmp_path / version.partition(".")[0] / "bin"
        folder.mkdir(parents=True)
        for program in programs:
            (folder / program).write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version} (Debian {version}-1)'\n")
            (folder / program).chmod(0o755)
        return folder

    return make


def test_the_newest_is_taken_but_for_data_that_another_made(package, tmp_path):
    nine, ten = package("9.6", "initdb", "psql"), package("17.6", "initdb", "psql")
    assert postgresql.server_programs() == ten and postgresql.client("psql") == ten / "psql"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/PG_VERSION").write_text("9\n")
    assert postgresql.server_programs(tmp_path / "data") == nine
    (tmp_path / "data/PG_VERSION").write_text("12\n")
    with pytest.raises(BlspError, match="made by PostgreSQL 12; here is 17, 9: install that version"):
        postgresql.server_programs(tmp_path / "data")


def test_a_client_needs_no_server(package, monkeypatch):
    """As in the services' image."""
    folder = package("17.6", "psql", "pg_dump", "pg_restore")
    assert postgresql.client("pg_dump") == folder / "pg_dump"
    monkeypatch.setattr(postgresql.os, "geteuid", lambda: 1000)
    with pytest.raises(BlspError, match="PostgreSQL is not here .* `sudo apt-get install postgresql`"):
        postgresql.server_programs()


def test_without_any_one_is_told_what_to_install(package):
    with pytest.raises(BlspError, match="pg_dump is not here; install PostgreSQL's client"):
        postgresql.client("pg_dump")


def test_root_gets_it_from_debian(package, monkeypatch):
    def install():
        package("15.2", "initdb")

    monkeypatch.setattr(postgresql, "_install", install)
    monkeypatch.setattr(postgresql.os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", {"apt-get": "/usr/bin/apt-get"}.get)
    assert postgresql.server_programs().parts[-2:] == ("15", "bin")


def test_a_password_that_is_not_there_is_named(monkeypatch):
    monkeypatch.delenv("PREFECT_DB_PASSWORD", raising=False)
    with pytest.raises(BlspError, match="PREFECT_DB_PASSWORD is not set: the password of PostgreSQL's user prefect"):
        postgresql.connection("prefect")
