"""The stages' command lines.

OpenMP reads the environment when torch is imported, so that is prepared here.

Importing what a stage needs makes a million objects that stay. Looking through them for garbage took more than a second
of a start of nine, and two seconds of every end. ``causvid.harness.stage.stage_run`` gives the collector its usual pace
back.
"""

import atexit
import gc

from causvid.harness.environment import prepare

prepare()
gc.set_threshold(100_000)
atexit.register(gc.freeze)
