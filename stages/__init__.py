"""The stages' command lines.

Importing what a stage needs makes a million objects that stay. Looking at them again and again for garbage took more
than a second of a start of nine; ``causvid.runtime.stage.stage_run`` gives the collector its usual pace back.
"""

import gc

gc.set_threshold(100_000)
