"""Prefect flows over DVC stages. Prefect reads the environment when it is imported, so that is prepared here."""

from causvid.harness.environment import prepare

prepare()
