"""params.yaml with other values in it: a profile's, then those given one by one. Its comments stay."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from blsp.params.loading import PARAMS_FILE, ParamsError, parse_params, parse_sections
from blsp.params.record import Record
from blsp.params.sections import Params

PROFILES = Path("profiles")

Override = tuple[tuple[str, ...], Any]  # the key's path, and its value


def with_overrides(text: str, profile: str | None = None, overrides: Sequence[str] = ()) -> str:
    """The text of a params file with the values of profiles/`profile`.yaml, and then `overrides`, in their places.

    An override is `train.lr=1e-4`: a key's full path and a value as YAML has it. It may also name one entry of a
    section with free names (`train.shares.repetition=0.2`). A profile holds the sections and keys that it changes;
    a list, or a section with free names, is given whole. Raises ParamsError where there is no such profile, an
    override is not of this form, or the whole would be refused as a params file.
    """
    if profile is None and not overrides:
        return text
    changes = [*(_profile(profile) if profile is not None else ()), *map(_override, overrides)]
    yaml = _keeping_comments()
    raw = parse_sections(text, PARAMS_FILE, yaml)
    for path, value in changes:
        _put(raw, path, value)
    stream = io.StringIO()
    yaml.dump(raw, stream)
    given = [f"profile {profile}"] if profile is not None else []
    parse_params(stream.getvalue(), f"{PARAMS_FILE} with {', '.join([*given, *overrides])}")
    return stream.getvalue() if changes else text


def _profile(name: str) -> Iterator[Override]:
    known = {path.stem: path for path in sorted(PROFILES.glob("*.yaml"))}
    if name not in known:
        there = ", ".join(known) or "none"
        raise ParamsError(f"{PROFILES}/{name}.yaml: there is no such profile; there are: {there}")
    text = known[name].read_text(encoding="utf-8")
    if all(line.startswith("#") or not line.strip() for line in text.splitlines()):  # it changes nothing
        return iter(())
    return _values(parse_sections(text, str(known[name]), _keeping_comments()))


def _values(section: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Override]:
    for key, value in section.items():
        inner = (*path, str(key))
        if isinstance(value, dict) and _has_fixed_keys(inner):
            yield from _values(value, inner)
        else:
            yield inner, value


def _has_fixed_keys(path: tuple[str, ...]) -> bool:
    """Whether a section with keys of its own stands there, rather than a value or a section with free names."""
    section: Any = Params
    for part in path:
        fields = section.model_fields.items()
        section = next((field.annotation for name, field in fields if part in (name, field.alias)), None)
        if get_origin(section) is UnionType:  # a section, or null
            section = get_args(section)[0]
        if not (isinstance(section, type) and issubclass(section, Record)):
            return False
    return True


def _override(text: str) -> Override:
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ParamsError(f"{text}: not an override; write a key of {PARAMS_FILE} and its value, such as train.lr=1e-4")
    try:
        return path, _keeping_comments().load(value)
    except MarkedYAMLError as error:
        raise ParamsError(f"{text}: the value is not YAML: {error.problem}") from None


def _put(section: Any, path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for part in parents:
        if not isinstance(section.get(part), dict):
            section[part] = {}
        section = section[part]
    section[last] = value


def _keeping_comments() -> YAML:
    yaml = YAML()  # YAML 1.2, as DVC reads it, comments and forms of numbers kept
    yaml.preserve_quotes = True
    yaml.width = 10**6
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml
