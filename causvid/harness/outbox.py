"""Send records to MLflow that it could not accept before: ``python -m causvid.harness.outbox`` (``make send``).

Flows use the subcommands ``begin`` and ``end`` to record their own runs, because they do not import this package.
"""

from __future__ import annotations

import json
import os
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
        sys.exit("MLflow does not have everything; the same command tries again")
    print("MLflow has everything, except for what running stages are sending")


@app.command()
def begin(
    name: Annotated[str, typer.Option(help="name of the flow")],
    profile: Annotated[str, typer.Option(help="profile of its params")],
    tags: Annotated[str, typer.Option(help="tags of its run, as JSON")],
) -> None:
    """Begin the run of a flow, and print the token for CAUSVID_PARENT_RUN_ID."""
    print(tracking.start_parent(name, profile, Path.cwd(), json.loads(tags)))


@app.command()
def end(
    token: Annotated[str, typer.Option(help="what begin printed")],
    status: Annotated[str, typer.Option(help="FINISHED, FAILED or KILLED")],
    note: Annotated[str, typer.Option(help="Markdown for the run's page")] = "",
) -> None:
    """End the run of a flow, and print its id in MLflow, or nothing if the flow has no run."""
    sender.quiet()
    journal = tracking.end_parent(token, status, note, Path.cwd())
    if status == "KILLED":  # a flow that is being cancelled must not wait; the next stage sends it
        return
    for outcome in sender.send_waiting(Path.cwd()):
        if outcome.journal == journal:
            print(outcome.run_id or "")
            if outcome.reason:
                sender.Complaint(journal)(outcome.reason)


if __name__ == "__main__":
    app()
