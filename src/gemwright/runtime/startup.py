"""Python's collector of garbage, out of the way of what is made to stay."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def paused() -> Generator[None]:
    """Collect no cyclic garbage for a while, and take what was made meanwhile for old.

    Modules and vocabularies are hundreds of thousands of objects that stay; looking through them again and again as
    they grow takes a tenth of the time to the first token.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        if was_enabled:
            gc.enable()
