"""Keep lm-eval and its libraries quiet, so that they do not write between the lines of our own progress.

Import this module before lm-eval.
"""

import logging
import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

CONNECTION_SECONDS = 5.0
"""Time that the hub has to answer before its cached files are used alone."""


def silence(*, offline: bool) -> None:
    """Turn off progress bars and notes, and with `offline` or without a network also the hub, which would retry."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline or not _reaches_hub():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("lm_eval", "lm-eval", "datasets", "evaluate", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _reaches_hub() -> bool:
    """Return whether the hub answers; with a proxy this is not known, and true."""
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if getproxies() or url.hostname is None:
        return True
    try:
        socket.create_connection((url.hostname, url.port or 443), CONNECTION_SECONDS).close()
    except OSError:
        return False
    return True
