"""The command line of a stage, whose ``--help`` also shows the complete commands of the stage in dvc.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from typer.core import TyperCommand

PIPELINES = ("dvc.yaml", "ablation/dvc.yaml")  # relative to the folder in which stages run


def run(stage: str, main: Callable[..., None]) -> None:
    """Parse the command line and call ``main``. dvc.yaml is read only for ``--help``.

    Args:
        stage: Name of the stage in dvc.yaml.
        main: Function whose parameters are the options.
    """

    class Command(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            formatter.write(commands_in_dvc(stage, Path.cwd()))

    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(main)
    app()


def commands_in_dvc(stage: str, folder: Path) -> str:
    """Return the commands of ``stage`` in the pipeline of ``folder`` as lines for a shell.

    The commands are those of dvc.yaml or, for a stage of the ablation only, those of ablation/dvc.yaml. A stage with
    ``foreach`` has one command for each item. Values of other files stay in the form ``${name}``.
    """
    for pipeline in PIPELINES:
        try:
            stages = YAML(typ="safe").load(folder / pipeline)["stages"]
            found = list(_commands(stage, stages[stage])) if stage in stages else []
        except FileNotFoundError:
            return f"{folder} has no {pipeline}. --help in the folder of the project also shows the complete command.\n"
        except (OSError, YAMLError, TypeError, KeyError, AttributeError) as error:
            return f"The complete command is in {folder / pipeline}, which cannot be read ({error!r}).\n"
        if found:
            return "\n".join([f"Complete command in {pipeline}:\n", *found])
    return ""


def _commands(name: str, stanza: Mapping[str, Any]) -> Iterator[str]:
    """Yield the commands of a stage of dvc.yaml, each with one option per line."""
    if "foreach" not in stanza:
        yield _in_lines(stanza["cmd"])
        return
    given = stanza["foreach"]
    items = given.items() if isinstance(given, Mapping) else ((entry, entry) for entry in given)
    for key, item in items:
        values = {"key": key, "item": item}
        if isinstance(item, Mapping):
            values |= {f"item.{field}": value for field, value in item.items()}
        command = _filled(stanza["do"]["cmd"], values)
        yield f"# {name}@{key}\n{_in_lines(command)}"


def _filled(command: str, values: Mapping[str, Any]) -> str:
    """Replace ``${name}`` by the value of ``name``, if ``values`` has one."""
    return re.sub(r"\$\{([\w.]+)\}", lambda found: str(values.get(found[1], found[0])), command)


def _in_lines(command: str) -> str:
    return " \\\n    --".join(command.removeprefix("exec ").split(" --")) + "\n"
