"""Read params files into frozen dataclasses. ``python -m causvid.params`` writes params.yaml.

A profile (profiles/NAME.yaml) is a complete params file. ``causvid/profile.py`` defines the dataclass of a whole file.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from causvid.runtime import text

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "profiles"
# Sections with the config of another library. Their keys differ between profiles.
FREE_FORM = ("model.vae", "model.transformer", "model.text_encoder")

T = TypeVar("T")


class WrongFields(ValueError):
    """Raised for wrong fields of a params file.

    Attributes:
        sentences: A sentence for each wrong field, keyed by the dotted name of the field.
    """

    def __init__(self, sentences: Mapping[str, str]) -> None:
        super().__init__("; ".join(sentences.values()))
        self.sentences = sentences


@dataclass(frozen=True)
class PathRule:
    """Rules for a path in a params file, which are part of the type of the field: ``Annotated[Path, PathRule(...)]``.

    Attributes:
        may_be_missing: Whether the path may be missing. Paths without a ``PathRule`` must exist.
        counted_by: File whose checksum is used instead of the path's checksum, for example the lock file of an
            environment.
    """

    may_be_missing: bool = False
    counted_by: Path | None = None


def paths_in(kind: Any, name: str) -> Iterator[tuple[str, PathRule]]:
    """Yield the dotted names and the rules of all paths in a section of a params file.

    Args:
        kind: Type of the section.
        name: Dotted name of the section; empty for the whole file.
    """
    marks = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    plain = get_args(kind)[0] if marks else kind
    if plain is Path:
        yield name, next((mark for mark in marks if isinstance(mark, PathRule)), PathRule())
    elif is_dataclass(plain):
        for field, hint in get_type_hints(plain, include_extras=True).items():
            yield from paths_in(hint, f"{name}.{field}".lstrip("."))


def read(path: Path) -> dict[str, Any]:
    """Read a params file. Raises ValueError if the file is missing or contains no sections."""
    return read_mapping(path, holding="sections", remedy="put one in place with 'make profile NAME=laptop'")


def read_mapping(path: Path, *, holding: str, remedy: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Args:
        path: The file.
        holding: Name of the mapping's entries in the error message.
        remedy: Last clause of the error message.

    Raises:
        ValueError: The file is missing, cannot be read, or contains no mapping.
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
    """Yield (dotted name, string) for all strings in nested mappings and lists, including keys."""
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
    """Build ``cls``, a frozen dataclass or a plain type, from the section ``name`` (dotted) of a params file.

    Raises:
        ValueError: Fields are wrong. The message has the name of each, its value and the expected type.
    """
    try:
        return build(cls, lookup(read(path), name, path), name=name)
    except ValueError as error:
        raise ValueError(f"{path}: {with_lines(error, path)}") from error


def with_lines(error: BaseException, path: Path) -> str:
    """Return the message of ``error``. For wrong fields of the params file ``path``, add the line of each field."""
    if not isinstance(error, WrongFields):
        return str(error)
    content = YAML().load(path)
    return "; ".join(f"{sentence}{_line(content, name)}" for name, sentence in error.sentences.items())


def _line(content: Any, dotted: str) -> str:
    """Return " (line N)", the line of an entry, or of the section in which the entry is missing."""
    line = ""
    for key in dotted.split("."):
        if not isinstance(content, CommentedMap) or key not in content:
            break
        line, content = f" (line {content.lc.key(key)[0] + 1})", content[key]
    return line


def build(cls: type[T], value: Any, *, name: str) -> T:
    """Build ``cls`` from ``value``, a value of a YAML file.

    Unknown keys are refused. Strings that contain a number, for example '1e-4', become numbers.

    Args:
        cls: A dataclass or a plain type.
        value: The value from YAML.
        name: Dotted name of the value, for error messages; empty for a whole file.

    Raises:
        WrongFields: Fields are wrong. The message has the name of each, its value and the expected type.
    """
    _refuse_unknown_keys(cls)
    try:
        return TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        raise WrongFields(dict(_sentence(it, name, cls) for it in error.errors())) from error


def _refuse_unknown_keys(kind: Any) -> None:
    """Configure a dataclass, and all dataclasses in its fields, so that pydantic refuses unknown keys."""
    if is_dataclass(kind):
        kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[union-attr]
        for hint in get_type_hints(kind).values():
            for part in (hint, *get_args(hint)):
                _refuse_unknown_keys(part)


def _sentence(error: Mapping[str, Any], name: str, cls: Any) -> tuple[str, str]:
    """Convert an error of pydantic for the value ``name`` to the dotted name of the field and a sentence."""
    where = ".".join(part for part in (name, *map(str, error["loc"])) if part)
    said = f"{error['msg']} (found {error['input']!r})"
    if error["type"] == "missing":
        said = "this key is missing"
    elif error["type"] == "unexpected_keyword_argument":
        known = [".".join(part for part in (name, field) if part) for field in _leaves_of(cls)]
        said = f"unknown key (found {error['input']!r}){did_you_mean(where, known)}"
    elif error["type"] == "value_error":  # raised by our dataclasses, whose messages name the field and the value
        said = str(error["ctx"]["error"])
    return where, f"{where}: {said}"


def _leaves_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all fields of a dataclass, and of the dataclasses in its fields."""
    for field, hint in get_type_hints(kind).items() if is_dataclass(kind) else ():
        yield f"{prefix}{field}"
        for part in (hint, *get_args(hint)):
            yield from _leaves_of(part, f"{prefix}{field}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question about the known name that may be meant by ``name``; empty if there is no such name.

    A similar key of the same section is preferred to the same key of another section.
    """
    section, _, key = name.rpartition(".")
    entries = [entry.rpartition(".") for entry in known]
    siblings = {last: f"{parent}{dot}{last}" for parent, dot, last in entries if parent == section}
    close = [siblings[each] for each in difflib.get_close_matches(key, siblings, n=1)]
    close += [f"{parent}{dot}{last}" for parent, dot, last in entries if last == key]
    return f", did you mean {close[0]}?" if close else ""


def use(profile: str, target: Path) -> None:
    """Replace ``target`` by ``profiles/<profile>.yaml``. Raises ValueError for an unknown profile."""
    source = PROFILES / f"{profile}.yaml"
    if not source.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ValueError(f"there is no profile {profile!r}; known: {known or 'none'}, in {PROFILES}")
    _replace(target, source.read_bytes())


def vary(base: Path, changes: Sequence[str], target: Path) -> None:
    """Write a changed copy of a params file.

    Args:
        base: The original params file.
        changes: Changes, as in ``changed``.
        target: The new params file, which is replaced if it exists.

    Raises:
        ValueError: ``changed`` refuses a change. ``target`` is then not written.
    """
    yaml, content = YAML(), io.BytesIO()
    yaml.default_flow_style = False
    yaml.dump(changed(base, changes), content)
    _replace(target, content.getvalue())


def changed(base: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Read the params file ``base``, and apply ``changes``.

    Args:
        base: The original params file.
        changes: ``dotted.key=value`` with a value in YAML, or ``FILE:section``, a mapping of dotted keys to values in a
            YAML file. If two changes have the same key, the later change is applied.

    Returns:
        The content of the changed params file.

    Raises:
        ValueError: ``base`` does not contain a key, or a change replaces a section by a section with other keys.
    """
    values, before = read(base), set(_leaves(read(base)))
    for key, value in _parse_changes(changes):
        *parents, last = key.split(".")
        place: Any = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise ValueError(f"{base}: unknown key {key}{did_you_mean(key, before)}")
        place[last] = value
    after = set(_leaves(values))
    wrong = [f"missing key {key}" for key in sorted(before - after)]
    wrong += [f"unknown key {key}{did_you_mean(key, before)}" for key in sorted(after - before)]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)} (the keys must be those of {base})")
    return values


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
    """Return the entry with the dotted name ``dotted`` in ``values``, the content of the file ``path``.

    Raises ValueError if the entry is missing.
    """
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
    """Run the command line. For a wrong argument, the command prints one sentence and exits with code 1."""
    parser = argparse.ArgumentParser(prog="python -m causvid.params", description="Write a params file.")
    commands = parser.add_subparsers(dest="command", required=True)
    using = commands.add_parser("use", help="copy profiles/NAME.yaml to params.yaml")
    using.add_argument("name", metavar="NAME")
    varying = commands.add_parser("set", help="write a params file with changed values")
    varying.add_argument("base", metavar="BASE", type=Path)
    varying.add_argument("changes", metavar="CHANGE", nargs="+", help="dotted.key=value, or FILE:section of changes")
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
