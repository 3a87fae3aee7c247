"""The services' secrets, in one file of environment variables that its owner alone reads."""

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from blsp.errors import BlspError

TEMPLATE = Path(__file__).with_name(".env.example")
SECRET_BYTES = 24


def write_secrets(path: Path) -> None:
    """Nothing; afterwards `path` has fresh secrets under the names of .env.example, and mode 0600.

    Raises BlspError where it is there already: what the services hold was made with those secrets.
    """
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    filled = [f"{line}{secrets.token_hex(SECRET_BYTES)}" if line.endswith("=") else line for line in lines]
    write_private(path, "\n".join(filled) + "\n", replace=False)


def write_private(path: Path, text: str, replace: bool = True) -> None:
    """Nothing; afterwards `path` holds `text`, and never was anyone else's to read. Raises BlspError where it is
    there and must not be replaced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
    try:
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # fails where `path` is there; a rename would not
    except FileExistsError as error:
        raise BlspError(f"{path} is there already: the services that it belongs to would lock you out") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_variables(path: Path) -> dict[str, str]:
    """The variables of such a file. Raises BlspError where a line is no NAME=value, or a value is empty."""
    variables = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not (equals and name.isidentifier() and value):
            raise BlspError(f"{path}, line {number}: must be NAME=value; `python -m infra.secrets` writes such a file")
        variables[name] = value
    return variables


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the file was written, 1 where it was there."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.secrets",
        description="Write a file of fresh secrets for infra/compose.yaml. One that is there is left as it is.",
    )
    parser.add_argument("file", type=Path, help="usually infra/.env")
    options = parser.parse_args(arguments)
    try:
        write_secrets(options.file)
    except (BlspError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
