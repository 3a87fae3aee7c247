"""params.yaml read and checked, with one clear line for each fault."""

import difflib
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from blsp.errors import BlspError
from blsp.params.record import (
    COMMIT,
    MODEL_NAME,
    NAME,
    PACKAGE_NAME,
    PACKAGE_VERSION,
    RAY_ADDRESS,
    S3_PREFIX,
    SERVER_URL,
    SHA256,
    shown,
)
from blsp.params.sections import Params

PARAMS_FILE = "params.yaml"


class ParamsError(BlspError):
    """params.yaml holds something the pipeline cannot run with; the message names each key and its remedy."""


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """The checked contents of a params file.

    Raises ParamsError with one line for each fault: the key's full path, what was found, and what would do.
    YAML 1.2 is read, as DVC reads it (so that `1e-3` is a number here and there).
    """
    return parse_params(read_params(path), str(path))


def read_params(path: str | Path = PARAMS_FILE) -> str:
    """The text of a params file, unchecked. Raises ParamsError where it cannot be read."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run blsp where params.yaml is") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: cannot be read: {error}") from None


def parse_params(text: str, named: str) -> Params:
    """The checked contents of the text of a params file, which messages call `named`. Raises as load_params does."""
    raw = parse_sections(text, named, YAML(typ="safe", pure=True))
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        faults = [_explain(fault) for fault in error.errors()]
        start = "\n  " if len(faults) > 1 else " "
        raise ParamsError(f"{named}:" + "".join(start + fault for fault in faults)) from None


def parse_sections(text: str, named: str, yaml: YAML) -> Any:
    """The sections of a params file's text, unchecked, as `yaml` reads them.

    Raises ParamsError where it is not YAML or has no sections.
    """
    try:
        raw = yaml.load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ParamsError(f"{named}, line {line}: not YAML: {error.problem}") from None
    except YAMLError as error:
        raise ParamsError(f"{named}: cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{named}: must hold sections such as `train:`; found {shown(raw)}")
    return raw


def _explain(fault: Any) -> str:
    """One line about one of pydantic's faults, in the words of a params file."""
    kind, location, context = fault["type"], fault["loc"], fault.get("ctx", {})
    is_key = location[-1:] == ("[key]",)
    location = location[:-1] if is_key else location
    if kind == "extra_forbidden" or (is_key and kind == "literal_error"):
        return f"{_path(location)}: unknown key{_nearest(location)}"
    if kind == "missing":
        return f"{_path(location)}: missing; add it"
    if kind == "value_error":
        return f"{_path(location)}: {context['error']}" if location else str(context["error"])
    if kind == "string_pattern_mismatch":
        wanted = _PATTERNS[context["pattern"]]
    elif kind in _WANTED:
        wanted = _WANTED[kind].format_map(context)
    else:
        wanted = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{_path(location)}: must be {wanted}; found {shown(fault['input'])}"


_PATTERNS = {
    COMMIT: "a commit in full, 40 digits of 0-9 and a-f (a branch or tag may move)",
    PACKAGE_NAME: "a package's name, without version or options",
    PACKAGE_VERSION: "one version, such as 1.0.0",
    SHA256: "a SHA-256 in full, 64 digits of 0-9 and a-f",
    RAY_ADDRESS: "auto (the cluster of this machine), host:6379 or ray://host:10001",
    S3_PREFIX: "s3://bucket/prefix, without a slash at its end",
    SERVER_URL: "an address that ends in /v1, such as http://localhost:8000/v1, with no key in it",
    MODEL_NAME: "a name of letters, digits and . _ - that begins with a letter or digit, at most 200 of them",
    NAME: "a name of small letters, digits and _ that begins with a letter",
}

_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "string_too_short": "text that is not empty",
    "too_short": "a section with at least one key",
    "dict_type": "a section of `key: value` lines",
    "list_type": "a list of `- ` lines",
    "model_type": "a section of `key: value` lines",
}


def _path(location: tuple[Any, ...]) -> str:
    return ".".join(map(str, location))


def _nearest(location: tuple[Any, ...]) -> str:
    close = difflib.get_close_matches(str(location[-1]), _keys_at(location[:-1]), n=1, cutoff=0)
    return f"; the nearest valid key is {_path((*location[:-1], close[0]))}" if close else ""


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys that the section at `location` may have; none where it may have any."""
    section: Any = Params
    for part in location:
        if get_origin(section) in (dict, list):
            section = get_args(section)[-1]
        else:
            fields = section.model_fields.items()
            section = next(field.annotation for name, field in fields if part in (name, field.alias))
        if get_origin(section) is UnionType:  # a section, or null
            section = get_args(section)[0]
    if get_origin(section) is dict:
        return list(get_args(get_args(section)[0]))
    return [field.alias or name for name, field in section.model_fields.items()]
