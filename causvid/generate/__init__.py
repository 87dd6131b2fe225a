"""The command ``causvid``. This file sets environment variables that OpenMP reads during the import of torch."""

from causvid.harness.environment import prepare

prepare()
