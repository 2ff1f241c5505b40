"""Fetching models from the Hugging Face hub into its cache, through `huggingface_hub`.

That library's own `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` decide where from, where to and as whom.
Source of the server's answers: huggingface_hub `utils/_http.py` (`hf_raise_for_status`).
"""

import errno
import json
import logging
import re
import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemwright.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TIMEOUT = 10.0  # seconds that the hub has to begin an answer
TOKENS = "https://huggingface.co/settings/tokens"

# What a folder of weights needs; the tokenizer, chat format and shards' index are among the JSON files.
_FOLDER = {
    "allow_patterns": ["*.json", "*.jinja", "tokenizer.model", "*.safetensors"],
    "ignore_patterns": ["*/*"],
}
_PART = r"(?=[\w.-]{1,96}(?:[/:]|$))\w(?:[\w.-]*\w)?"
_NAME = re.compile(rf"(?!.*(?:--|\.\.))({_PART}/{_PART}(?<!\.git))(?::(\w[\w./-]*\.gguf))?", re.ASCII)

_log = logging.getLogger(__name__)


def is_repo_id(text: str) -> bool:
    """Says whether `text` reads `owner/name` or `owner/name:file.gguf`; the hub is not asked."""
    return _NAME.fullmatch(text) is not None


def download(repo_id: str, revision: str | None = None) -> Path:
    """Returns a model's place in the hub's cache and fetches what is not there yet.

    Whole files that are there stay, and within a call a broken connection is taken up where it stopped. When the
    hub gives nothing, a complete copy in the cache does. A terminal on standard error shows the progress.

    Args:
        repo_id: `owner/name`, a repository of safetensors, or `owner/name:file.gguf`.
        revision: A branch, tag or commit; the main branch by default.

    Returns:
        The folder with the weights, configuration and tokenizer, or the GGUF file.

    Raises:
        CheckpointError: The name, the network, the token, the licence, the server or the disk is in the way.
    """
    import httpx2

    match = _NAME.fullmatch(repo_id)
    if match is None:
        raise CheckpointError(f"{repo_id!r:.200} is no hub repository; write owner/name or owner/name:file.gguf.")
    repo, file = match.groups()
    try:
        return _fetch(repo, file, revision)
    except (httpx2.HTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:
        here = cached(repo_id, revision)
        if here is None:
            raise CheckpointError(f"{repo_id}: {_explain(error, repo, revision)}.") from error
        _log.info("%s: taken from the cache, as the hub gave nothing (%s)", repo_id, error)
        return here


def _fetch(repo: str, file: str | None, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    wanted = {name: size for name, size in sizes.items() if (name == file if file else _is_selected(name))}
    if not any(name.endswith((".safetensors", ".gguf")) for name in wanted):
        ggufs = [f"{repo}:{name}" for name in sizes if name.endswith(".gguf")]
        remedy = f"choose from {', '.join(ggufs)}" if ggufs else "look for another repository"
        raise CheckpointError(f"{repo}: holds no {file or 'safetensors file'}; {remedy}.")
    _check_space(repo, revision, wanted)
    folder = Path(snapshot_download(repo, revision=revision, **_selection(file)))
    return folder / file if file else folder


def _selection(file: str | None) -> dict[str, Any]:
    return {"allow_patterns": [file]} if file else _FOLDER


def _is_selected(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in _FOLDER["allow_patterns"])


def cached(repo_id: str, revision: str | None = None) -> Path | None:
    """Returns what `download` would if it is in the hub's cache, else None; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    match = _NAME.fullmatch(repo_id)
    assert match is not None, f"{repo_id} is no hub repository"
    repo, file = match.groups()
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, **_selection(file)))
    except LocalEntryNotFoundError:
        return None
    if file:
        return folder / file if (folder / file).exists() else None
    return folder if any(folder.glob("*.safetensors")) else None


def _check_space(repo: str, revision: str | None, sizes: dict[str, int]) -> None:
    """Raises ENOSPC before the first byte if the files to fetch do not fit."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    needed = 0
    for name, size in sizes.items():
        cached = try_to_load_from_cache(repo, name, revision=revision)
        if not isinstance(cached, str) or Path(cached).stat().st_size != size:
            needed += size
    if needed > _free(Path(HF_HUB_CACHE)):
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed", HF_HUB_CACHE)


def _free(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def _explain(error: BaseException, repo: str, revision: str | None) -> str:
    """Says in one sentence what is in the way and how to mend it."""
    import httpx2
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    match error:
        case OfflineModeIsEnabled():
            return "is not in the cache and HF_HUB_OFFLINE forbids the network; unset it"
        case HfHubHTTPError():
            return _explain_answer(error, repo, revision or "main")
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return f"is not in the cache and there is no network to {ENDPOINT}; connect and run it again"
        case httpx2.HTTPError():
            return f"the connection to {ENDPOINT} broke off; run it again, and files that are complete stay"
        case json.JSONDecodeError():
            return f"{ENDPOINT} does not answer as the hub does; check HF_ENDPOINT and the proxy"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            free = f"{_free(Path(HF_HUB_CACHE)):,} bytes are free in {HF_HUB_CACHE}"
            return f"the disk is full ({error.strerror}, {free}); make room or set HF_HOME to another disk"
        case RuntimeError():  # hf_xet has no class of its own for its failures
            return f"the hub's file storage failed ({error!s:.200}); run it again later"
        case OSError(errno=None):
            return "a file arrived with another size than announced; run it again"
        case _:
            return f"{HF_HUB_CACHE} cannot be written ({error}); set HF_HOME to another place"


def _explain_answer(error: "HfHubHTTPError", repo: str, revision: str) -> str:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    status, said = error.response.status_code, (error.server_message or "").lower()
    has_token = "authorization" in error.response.request.headers
    give_token = f"set HF_TOKEN to a token from {TOKENS}"
    match error:
        case _ if status == 401 and has_token:
            return f"the hub does not know this token, which may be wrong or expired; {give_token}"
        case errors.GatedRepoError() if not has_token:
            return f"is open only to those who accepted its licence; accept it at {page} and {give_token}"
        case errors.GatedRepoError() if "fine-grained" in said:
            return f"this token may not read gated repositories; allow it so in its settings at {TOKENS}"
        case errors.GatedRepoError() if "awaiting" in said:
            return f"its authors have not yet answered your request for access; see {page}"
        case errors.GatedRepoError():
            return f"this token's owner has not accepted its licence; accept it at {page}"
        case errors.RepositoryNotFoundError() if has_token:
            return f"there is no such repository, or this token may not see it; check the name at {page}"
        case errors.RepositoryNotFoundError():
            return f"there is no such repository, or it is private; check the name at {page} or {give_token}"
        case errors.RevisionNotFoundError():
            return f"has no revision {revision!r}; see {page}/commits for those it has"
        case errors.RemoteEntryNotFoundError():
            return f"a file that its listing names is not there; see {page}/tree/{revision}"
        case _ if status == 403:
            return f"this token may not read it; allow it so in its settings at {TOKENS}"
        case _ if status == 429:
            return f"the hub asks for fewer requests; wait some minutes or {give_token}"
        case _ if status >= 500:
            return f"the hub has trouble of its own (status {status}); run it again later"
        case _:
            return f"the hub refuses with status {status} ({said:.200}); see {page}"
