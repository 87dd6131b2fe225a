"""params.yaml: sections become frozen dataclasses; ``python -m causvid.params use NAME`` puts a profile in place.

A profile (profiles/NAME.yaml) is a complete params file. All profiles have the same keys, so a working params.yaml is
held against one of them: a missing or unknown key anywhere stops the first stage that runs, naming the key.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "profiles"
# Free-form sections: their keys are another library's configuration and differ from profile to profile.
FREE_FORM = ("model.vae", "model.transformer", "model.text_encoder")

T = TypeVar("T")


def read(path: Path) -> dict[str, Any]:
    """The whole params file as plain Python values, its keys checked. Raises ValueError naming every wrong key."""
    values = read_mapping(path, holding="sections", remedy="put one in place with 'make profile NAME=laptop'")
    have, want = set(_leaves(values)), set(_leaves(YAML(typ="safe").load(PROFILES / "laptop.yaml")))
    wrong = [f"missing key {key}" for key in sorted(want - have)] + [
        f"unknown key {key}" for key in sorted(have - want)
    ]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)} (the keys must be those of profiles/laptop.yaml)")
    return values


def read_mapping(path: Path, *, holding: str, remedy: str) -> dict[str, Any]:
    """The YAML mapping in ``path``; ``holding`` is what its user would call the entries.

    Raises ValueError, with the ``remedy``, for a file that is missing, cannot be read or holds something else.
    """
    try:
        values = YAML(typ="safe").load(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; {remedy}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, not {holding}; {remedy}")
    return values


def section(path: Path, name: str, cls: type[T]) -> T:
    """The dotted section ``name`` of the params file as ``cls``, a frozen dataclass (or plain type).

    Raises ValueError listing every wrong field of the section: its name, the value found and what was expected.
    """
    value: Any = read(path)
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{path}: missing section {name}")
        value = value[key]
    return build(cls, value, name=f"{path}: {name}")


def build(cls: type[T], value: Any, *, name: str) -> T:
    """``value`` (from YAML) as ``cls``, unknown keys forbidden, '1e-4' strings read as numbers. Raises ValueError."""
    if hasattr(cls, "__dataclass_fields__"):
        cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    try:
        return TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, (name, *e['loc'])))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ValueError("; ".join(wrong)) from error


def use(profile: str, target: Path) -> None:
    """Copy ``profiles/<profile>.yaml`` over ``target`` in one step. Raises ValueError naming the known profiles."""
    source = PROFILES / f"{profile}.yaml"
    if not source.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ValueError(f"there is no profile {profile!r}; known: {known}")
    read(source)
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.write_bytes(source.read_bytes())
    os.replace(temporary, target)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in FREE_FORM:
            yield from _leaves(value, f"{name}.")
        else:
            yield name


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "use":
        sys.exit("usage: python -m causvid.params use NAME")
    try:
        use(sys.argv[2], Path("params.yaml"))
    except ValueError as error:
        sys.exit(str(error))
    print(f"params.yaml is now the profile {sys.argv[2]}")
