"""Download models from the Hugging Face hub into its cache, with `huggingface_hub`.

Its environment variables `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` apply.
Source of the server's answers: huggingface_hub `utils/_http.py` (`hf_raise_for_status`).
"""

import errno
import json
import logging
import re
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemwright.checkpoint.files.atomic import free_bytes
from gemwright.checkpoint.files.formats import PART
from gemwright.checkpoint.files.parts import is_part, pattern_of_parts
from gemwright.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TIMEOUT = 10.0
"""Seconds that the hub has to begin an answer."""
TOKENS = "https://huggingface.co/settings/tokens"
"""Page where users create tokens."""

_FOLDER = {
    "allow_patterns": ["*.json", "*.jinja", "tokenizer.model", "*.safetensors"],
    "ignore_patterns": ["*/*"],
}
"""Files of a folder of weights. The JSON files include the tokenizer, chat template and index of shards."""
_PART = r"(?=[\w.-]{1,96}(?:[/:]|$))\w(?:[\w.-]*\w)?"
_NAME = re.compile(rf"(?!.*(?:--|\.\.))({_PART}/{_PART}(?<!\.git))(?::(\w[\w./-]*\.gguf(?:[.-][\w.-]*\w)?))?", re.ASCII)

_TOWER = re.compile(r"(?:^|/)[\w.-]*mmproj[\w.-]*\.gguf$", re.IGNORECASE | re.ASCII)
"""Names of vision towers in the GGUF repositories of llama.cpp's users."""
_ENCODINGS = ("bf16", "f16", "f32")
_ENCODING = re.compile(r"[-_.]?(?:bf16|fp?16|fp?32|q8_0)", re.IGNORECASE)

_log = logging.getLogger(__name__)


def is_repo_id(text: str) -> bool:
    """Return whether `text` has the form `owner/name` or `owner/name:file.gguf`, without asking the hub."""
    return _parse(text) is not None


def _parse(text: str) -> tuple[str, str | None] | None:
    """Return the repository and the GGUF file, or first part of one, of a hub id; None if it is none."""
    match = _NAME.fullmatch(text)
    if match is None or not (match[2] is None or match[2].endswith(".gguf") or is_part(Path(match[2]))):
        return None
    return match[1], match[2]


def download(repo_id: str, revision: str | None = None) -> Path:
    """Download the files of a model that are not in the hub's cache yet, and return its place there.

    Complete files are not downloaded again, and within a call a broken connection is resumed. If the hub cannot be
    reached, a complete copy in the cache is used. A terminal on standard error shows the progress.

    Args:
        repo_id: `owner/name`, a repository with safetensors, or `owner/name:file.gguf`, with the vision tower
            beside it, or the first part of such a file, as `owner/name:file.gguf.part1of2`.
        revision: A branch, tag or commit; the main branch by default.

    Returns:
        The folder with the weights, configuration and tokenizer, or the GGUF file.

    Raises:
        CheckpointError: The name, network, token, license, server or disk prevents it.
    """
    import httpx2

    parsed = _parse(repo_id)
    if parsed is None:
        raise CheckpointError(f"{repo_id!r:.200} is not a hub repository; use owner/name or owner/name:file.gguf.")
    repo, file = parsed
    try:
        return _fetch(repo, file, revision)
    except (httpx2.HTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:
        copy = cached(repo_id, revision)
        if copy is None:
            raise CheckpointError(f"{repo_id}: {_explain(error, repo, revision)}.") from error
        _log.info("%s: use the copy in the cache, as the hub cannot be reached (%s)", repo_id, error)
        return copy


def _fetch(repo: str, file: str | None, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    selected = _select_files(file, _find_tower(file, sizes))
    patterns = selected["allow_patterns"]
    wanted = {name: size for name, size in sizes.items() if _is_selected(name, patterns, below=file is not None)}
    if not (file in wanted if file else any(name.endswith(".safetensors") for name in wanted)):
        ggufs = [f"{repo}:{name}" for name in sizes if name.endswith(".gguf") or is_part(Path(name))]
        remedy = f"choose from {', '.join(ggufs)}" if ggufs else "use another repository"
        raise CheckpointError(f"{repo}: has no {file or 'safetensors file'}; {remedy}.")
    _check_space(repo, revision, wanted)
    folder = Path(snapshot_download(repo, revision=revision, **selected))
    return folder / file if file else folder


def _select_files(file: str | None, tower: str | None = None) -> dict[str, Any]:
    """Return the patterns of the files to download; of a part of a split or cut GGUF model, those of all parts."""
    if file is None:
        return _FOLDER
    return {"allow_patterns": [pattern_of_parts(PART.sub(r"-?????-of-\2", file)), *([tower] if tower else [])]}


def _find_tower(file: str | None, names: Iterable[str]) -> str | None:
    """Return the vision tower beside a GGUF file in a repository, in 16 bits if there are several encodings of it."""
    if file is None or _TOWER.search(file):
        return None
    place = file.rpartition("/")[0]
    towers = [name for name in names if _TOWER.search(name) and name.rpartition("/")[0] == place]
    towers.sort(key=lambda name: [encoding not in name.lower() for encoding in _ENCODINGS])
    return towers[0] if len({_ENCODING.sub("", name) for name in towers}) == 1 else None


def _is_selected(name: str, patterns: Iterable[str], *, below: bool) -> bool:
    return (below or "/" not in name) and any(fnmatchcase(name, pattern) for pattern in patterns)


def cached(repo_id: str, revision: str | None = None) -> Path | None:
    """Return the place of a model in the hub's cache, or None if it is not there, without asking the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    parsed = _parse(repo_id)
    assert parsed is not None, f"{repo_id} is not a hub repository"
    repo, file = parsed
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, **_select_files(file)))
    except LocalEntryNotFoundError:
        return None
    if file:
        return folder / file if (folder / file).exists() else None
    return folder if any(folder.glob("*.safetensors")) else None


def _check_space(repo: str, revision: str | None, sizes: dict[str, int]) -> None:
    """Raise ENOSPC before the first byte if the files to download do not fit."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    needed = 0
    for name, size in sizes.items():
        cached = try_to_load_from_cache(repo, name, revision=revision)
        if not isinstance(cached, str) or Path(cached).stat().st_size != size:
            needed += size
    if needed > free_bytes(Path(HF_HUB_CACHE)):
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed", HF_HUB_CACHE)


def _explain(error: BaseException, repo: str, revision: str | None) -> str:
    """Describe a failure and how to fix it in one sentence."""
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
            return f"is not in the cache and {ENDPOINT} cannot be reached; connect to the network and try again"
        case httpx2.HTTPError():
            return f"the connection to {ENDPOINT} broke; try again, complete files are kept"
        case json.JSONDecodeError():
            return f"{ENDPOINT} does not answer like the hub; check HF_ENDPOINT and the proxy"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            free = f"{free_bytes(Path(HF_HUB_CACHE)):,} bytes are free in {HF_HUB_CACHE}"
            return f"the disk is full ({error.strerror}, {free}); make room or set HF_HOME to another disk"
        case RuntimeError():  # hf_xet has no exception class of its own
            return f"the hub's file storage failed ({error!s:.200}); try again later"
        case OSError(errno=None):
            return "a downloaded file has another size than announced; try again"
        case _:
            return f"{HF_HUB_CACHE} cannot be written ({error}); set HF_HOME to another folder"


def _explain_answer(error: "HfHubHTTPError", repo: str, revision: str) -> str:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    status, said = error.response.status_code, (error.server_message or "").lower()
    has_token = "authorization" in error.response.request.headers
    give_token = f"set HF_TOKEN to a token from {TOKENS}"
    match error:
        case _ if status == 401 and has_token:
            return f"the hub rejects this token, which may be wrong or expired; {give_token}"
        case errors.GatedRepoError() if not has_token:
            return f"requires accepting its license; accept it at {page} and {give_token}"
        case errors.GatedRepoError() if "fine-grained" in said:
            return f"this token may not read gated repositories; allow it in its settings at {TOKENS}"
        case errors.GatedRepoError() if "awaiting" in said:
            return f"its authors have not answered your request for access yet; see {page}"
        case errors.GatedRepoError():
            return f"the owner of this token has not accepted its license; accept it at {page}"
        case errors.RepositoryNotFoundError() if has_token:
            return f"there is no such repository, or this token may not read it; check the name at {page}"
        case errors.RepositoryNotFoundError():
            return f"there is no such repository, or it is private; check the name at {page} or {give_token}"
        case errors.RevisionNotFoundError():
            return f"has no revision {revision!r}; see {page}/commits"
        case errors.RemoteEntryNotFoundError():
            return f"a listed file is missing; see {page}/tree/{revision}"
        case _ if status == 403:
            return f"this token may not read it; allow it in its settings at {TOKENS}"
        case _ if status == 429:
            return f"the hub received too many requests; wait some minutes or {give_token}"
        case _ if status >= 500:
            return f"the hub has an internal error (status {status}); try again later"
        case _:
            return f"the hub refused with status {status} ({said:.200}); see {page}"
