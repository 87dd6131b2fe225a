"""Send records that MLflow could not accept before: ``python -m causvid.harness.outbox`` (``make send``).

Flows do not import this package. They use the subcommands ``begin`` and ``end`` to record their own runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from causvid.harness import sender, tracking

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def send(context: typer.Context) -> None:
    """Send all records in the work folder that MLflow does not have."""
    if context.invoked_subcommand:
        return
    sender.quiet()
    left = [outcome for outcome in sender.send_waiting(Path.cwd()) if outcome.reason]
    for it in left:
        print(f"{it.name} waits in {os.path.relpath(it.journal.folder)}: {it.reason}", file=sys.stderr)
    if left:
        sys.exit("MLflow does not have all records; run the same command to try again")
    print("MLflow has all records, except those of running stages")


@app.command()
def begin(
    name: Annotated[str, typer.Option(help="name of the flow")],
    tags: Annotated[str, typer.Option(help="tags of the run, as JSON")],
) -> None:
    """Begin the run of a flow, and print the token for CAUSVID_PARENT_RUN_ID."""
    print(tracking.start_parent(name, Path.cwd(), json.loads(tags)))


@app.command()
def end(
    token: Annotated[str, typer.Option(help="token that begin printed")],
    status: Annotated[str, typer.Option(help="FINISHED, FAILED or KILLED")],
    note: Annotated[str, typer.Option(help="Markdown text for the page of the run")] = "",
) -> None:
    """End the run of a flow, and print the id of the run in MLflow; print nothing if the flow has no run."""
    sender.quiet()
    journal = tracking.end_parent(token, status, note, Path.cwd())
    if status == "KILLED":  # a cancelled flow must not wait; another process sends the end of the run
        nothing = subprocess.DEVNULL
        command = [sys.executable, "-m", "causvid.harness.outbox"]
        subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        return
    for outcome in sender.send_waiting(Path.cwd()):
        if outcome.journal == journal:
            print(outcome.run_id or "")
            if outcome.reason:
                sender.Complaint(journal)(outcome.reason)


if __name__ == "__main__":
    app()
