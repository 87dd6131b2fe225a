"""Prefect flows that run DVC stages. The environment is prepared here, because Prefect reads it when it is imported."""

from causvid.harness.environment import prepare

prepare()
