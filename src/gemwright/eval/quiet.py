"""Keep lm-eval and its libraries quiet, so that they do not write between the lines of our own progress.

Import this module before lm-eval.
"""

import logging
import os


def silence(*, offline: bool) -> None:
    """Turn off progress bars and notes, and with `offline` also the hub."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("lm_eval", "lm-eval", "datasets", "evaluate", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
