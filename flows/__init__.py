"""Prefect flows that run DVC stages. This file sets environment variables that Prefect reads during its import."""

from causvid.harness.environment import prepare

prepare()
