"""The command lines of the pipeline's stages.

This module prepares the environment, because OpenMP reads the environment when torch is imported.

The imports of a stage create a million objects that live until the process ends. The garbage collector needed more than
one of the nine seconds of a start, and two seconds at every exit, to scan these objects. This module therefore reduces
the collections; ``causvid.harness.stage.stage_run`` restores the usual thresholds.
"""

import atexit
import gc

from causvid.harness.environment import prepare

prepare()
gc.set_threshold(100_000)
atexit.register(gc.freeze)
