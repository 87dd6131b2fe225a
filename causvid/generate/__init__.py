"""The command ``causvid``. This file sets environment variables that OpenMP reads when torch is imported."""

from causvid.harness.environment import prepare

prepare()
