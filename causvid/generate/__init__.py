"""The command ``causvid``. OpenMP reads the environment when torch is imported, so that is prepared here."""

from causvid.harness.environment import prepare

prepare()
