"""The check of every file that git keeps: what must not be there is found, what is named as a digest is not."""

import hashlib
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / ".ci" / "check_secrets"
RANDOM = hashlib.md5(b"test", usedforsecurity=False).hexdigest()  # not written out: this file is checked too


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f'password = "{RANDOM}"', "Secret Keyword"),
        (f'token: "{RANDOM}"', "Hex High Entropy String"),
        ("key = 'AKIA" + "IOSFODNN7EXAMPLQ'", "AWS Access Key"),
        ("postgresql://mlflow:" + "hunter2hunter2@db/mlflow", "Basic Auth Credentials"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "Private Key"),
        (f'"sha256": "{RANDOM}"', None),
        (f"  speech_revision: {RANDOM}", None),
    ],
)
def test_what_is_secret_is_found_and_digests_are_not(tmp_path: Path, line: str, kind: str | None) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(line + "\n")
    done = subprocess.run([CHECK, file], capture_output=True, text=True)
    assert done.returncode == (1 if kind else 0), done.stdout + done.stderr
    if kind:
        assert f"Secret Type: {kind}" in done.stdout and f"{file}:1" in done.stdout and RANDOM not in done.stdout
