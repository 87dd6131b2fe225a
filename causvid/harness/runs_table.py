"""Define the columns and the order of MLflow's table of runs, as a view that MLflow's page reads from an experiment.

MLflow stores a view that a user shares as a tag of the experiment. The address of the table contains the name of the
view. Views have no other interface.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

VIEW = "causvid"
TAG = f"mlflow.sharedViewState.{VIEW}"
NOTE = (
    "A run is one `dvc repro`, one DVC experiment or one flow. Its name lists the params that differ from the profile. "
    "Its child runs are the stages that were executed. A run has scores if its stage `report` was executed."
)
# Child runs have no tag "profile". A table that is sorted by a metric does not show them below their parents.
FILTER = "tags.profile != ''"


def experiment_tags(metrics: Sequence[str]) -> dict[str, str]:
    """Return the tags of an experiment whose table has columns for ``metrics``, sorted by the first of them."""
    columns = [f"metrics.`{name}`" for name in metrics]
    columns += [f"tags.`{name}`" for name in ("seed",)]
    columns += [f"attributes.`{name}`" for name in ("Duration", "User", "Source", "Version")]
    order = columns[0] if metrics else "attributes.start_time"
    state = {"searchFilter": FILTER, "orderByKey": order, "orderByAsc": False}
    return {
        TAG: json.dumps({**state, "selectedColumns": columns, "columnOrder": columns}),
        "mlflow.note.content": NOTE,
    }


def address(experiment: str) -> str:
    """Return the address of the table of an experiment, relative to MLflow's server."""
    # Without the workflow type, MLflow 3 opens a page about chat bots.
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
