"""Forked processes: JAX's threads do not exist in one, so a computation would wait for them forever."""

import os

from gemwright.errors import GemwrightError

_watches = False
_is_forked = False


def watch() -> None:
    """Notice forks from now on; call it when JAX starts."""
    global _watches
    if not _watches and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_mark)
    _watches = True


def require_not_forked() -> None:
    """Raise an error in a process that was forked after `watch`.

    Raises:
        GemwrightError: It was.
    """
    if _is_forked:
        raise GemwrightError(
            "This process was forked after a model was loaded, which JAX does not support; start it with "
            'multiprocessing.get_context("spawn") and load the model in it.'
        )


def _mark() -> None:
    global _is_forked
    _is_forked = True
