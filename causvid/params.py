"""Params files: read, checked, and built into frozen dataclasses. ``python -m causvid.params`` writes params.yaml.

A profile (profiles/NAME.yaml) is a complete params file. All profiles have the same keys, and params.yaml is
compared with one of them: the first stage that runs refuses a missing or unknown key by name.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from causvid.runtime import text

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "profiles"
# Sections whose keys are the configuration of another library and differ between profiles.
FREE_FORM = ("model.vae", "model.transformer", "model.text_encoder")

T = TypeVar("T")


def read(path: Path) -> dict[str, Any]:
    """Read a params file and check its keys. Raises ValueError with the names of all wrong keys."""
    values = read_mapping(path, holding="sections", remedy="put one in place with 'make profile NAME=laptop'")
    _require_keys(values, path)
    return values


def _require_keys(values: Mapping[str, Any], path: Path) -> None:
    have, want = set(_leaves(values)), set(_leaves(YAML(typ="safe").load(PROFILES / "laptop.yaml")))
    wrong = [f"missing key {key}" for key in sorted(want - have)] + [
        f"unknown key {key}" for key in sorted(have - want)
    ]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)} (the keys must be those of profiles/laptop.yaml)")


def read_mapping(path: Path, *, holding: str, remedy: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Args:
        path: The file.
        holding: The entries of the mapping, as the error message names them.
        remedy: The end of the error message.

    Raises:
        ValueError: The file is missing, cannot be read, or holds something else.
    """
    try:
        values = YAML(typ="safe").load(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; {remedy}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
    except YAMLError as error:
        text.decode(path.read_bytes(), str(path))  # raises a clearer error if the bytes are not UTF-8
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, not {holding}; {remedy}")
    for name, value in _strings(values):
        text.require(value, f"{path}: {name}")
    return values


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the strings in nested mappings and lists, keys included, after their dotted names."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _strings(key, f"a key of {name}" if name else "a key")
            yield from _strings(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _strings(entry, f"{name}[{index}]")


def section(path: Path, name: str, cls: type[T]) -> T:
    """Return the dotted section ``name`` of the params file as ``cls``, a frozen dataclass or a plain type.

    Raises:
        ValueError: Fields are wrong. The message has the name of each, its value and the expected type.
    """
    return build(cls, lookup(read(path), name, path), name=f"{path}: {name}")


def build(cls: type[T], value: Any, *, name: str) -> T:
    """Build ``cls`` from ``value``, which YAML gave.

    Unknown keys are refused, and strings such as '1e-4' become numbers.

    Args:
        cls: A dataclass or a plain type.
        value: The value.
        name: Name of the value, for error messages.

    Raises:
        ValueError: Fields are wrong. The message has the name of each, its value and the expected type.
    """
    if hasattr(cls, "__dataclass_fields__"):
        cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    try:
        return TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, (name, *e['loc'])))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ValueError("; ".join(wrong)) from error


def use(profile: str, target: Path) -> None:
    """Replace ``target`` by ``profiles/<profile>.yaml``. Raises ValueError with the known profiles if there is none."""
    source = PROFILES / f"{profile}.yaml"
    if not source.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ValueError(f"there is no profile {profile!r}; known: {known}")
    read(source)
    _replace(target, source.read_bytes())


def vary(base: Path, changes: Sequence[str], target: Path) -> None:
    """Replace ``target`` by the params file ``base`` with ``changes``.

    Args:
        base: A params file.
        changes: ``dotted.key=value`` with a value in YAML, or ``FILE:section``, a mapping of dotted keys to values in a
            YAML file. If two changes have the same key, the later one is applied.
        target: The file to write.

    Raises:
        ValueError: ``base`` does not have one of the keys.
    """
    values = read(base)
    for key, value in _parse_changes(changes):
        *parents, last = key.split(".")
        place: Any = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise ValueError(f"{base}: unknown key {key}")
        place[last] = value
    _require_keys(values, target)
    yaml, content = YAML(), io.BytesIO()
    yaml.default_flow_style = False
    yaml.dump(values, content)
    _replace(target, content.getvalue())


def _parse_changes(changes: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for change in changes:
        text.require(change, "a change")
        key, equals, value = change.partition("=")
        file, colon, section = change.rpartition(":")
        if equals:
            try:
                yield key, YAML(typ="safe").load(value)
            except YAMLError as error:
                raise ValueError(f"{key}: {value!r} is not valid YAML: {error}") from error
        elif colon:
            found = lookup(read_mapping(Path(file), holding="changes", remedy="name another file"), section, Path(file))
            if not isinstance(found, dict):
                raise ValueError(f"{change} holds {type(found).__name__}, not changes (dotted.key: value)")
            yield from ((str(key), value) for key, value in found.items())
        else:
            raise ValueError(f"{change!r} is no change: write dotted.key=value, or FILE:section")


def lookup(values: Mapping[str, Any], dotted: str, path: Path) -> Any:
    """Return the entry ``dotted`` of the nested ``values`` of ``path``. Raises ValueError if there is none."""
    found: Any = values
    for key in dotted.split("."):
        if not isinstance(found, Mapping) or key not in found:
            raise ValueError(f"{path}: missing section {dotted}")
        found = found[key]
    return found


def _replace(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, target)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in FREE_FORM:
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def main(arguments: Sequence[str]) -> None:
    """Run the command. A mistake of the user ends it with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m causvid.params", description="Put a params file in place.")
    commands = parser.add_subparsers(dest="command", required=True)
    using = commands.add_parser("use", help="make params.yaml a copy of profiles/NAME.yaml")
    using.add_argument("name", metavar="NAME")
    varying = commands.add_parser("set", help="write a params file with some values changed")
    varying.add_argument("base", metavar="BASE", type=Path)
    varying.add_argument("changes", metavar="CHANGE", nargs="+", help="dotted.key=value, or FILE:section of such")
    varying.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.command == "use":
            use(given.name, Path("params.yaml"))
            print(f"params.yaml is now the profile {given.name}")
        else:
            vary(given.base, given.changes, given.out)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
