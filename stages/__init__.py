"""The command lines of the pipeline's stages.

This module prepares the environment, because OpenMP reads the environment when torch is imported.

A stage module imports only the types of its fields. The modules that do the work import torch, diffusers and others for
several seconds, so that ``run`` imports them: ``--help``, a wrong option or a wrong params file is answered at once.

These imports create a million objects that live until the process ends. The garbage collector would need two seconds at
every exit to scan these objects, so that this module excludes them from the last collection.
"""

import atexit
import gc

from causvid.harness import outputs
from causvid.harness.environment import prepare

prepare()
outputs.begin()
atexit.register(gc.freeze)
