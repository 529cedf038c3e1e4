"""Python's garbage collector, in a process that does nothing but serve.

It is the process's: who serves beside other things, as a test does, leaves it as it is.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 10_000
"""So many more objects than before have the garbage collector look for cycles. Executions that wait for their store are
a few thousand, and none."""


def freeze() -> None:
    """Keep the garbage collector off everything that is there at the start.

    A full collection over loaded libraries takes tens of milliseconds, which requests would wait for. Configurations
    that are swapped in later stay in the collector's hands: they are small, and they do end.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def collect_young() -> None:
    """Collect what came after the freeze, which is quick. Where nothing is frozen, it would not be, and is left."""
    if gc.get_freeze_count():
        gc.collect()


__all__ = ["collect_young", "freeze"]
