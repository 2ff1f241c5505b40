"""Find the file or folder of a model from a path, the name of a published model, a hub id or a name of Ollama's."""

import difflib
import re
from pathlib import Path

from gemwright.checkpoint.demo import DEMO, find_demo
from gemwright.checkpoint.files.parts import is_part
from gemwright.checkpoint.hub import cached, download, is_repo_id
from gemwright.checkpoint.ollama import PREFIX, locate_ollama
from gemwright.errors import CheckpointError
from gemwright.runtime.cache_dir import ensure_home
from gemwright.variants import VARIANTS

_PUBLISHED = {name for variant in VARIANTS.values() for name in variant.checkpoints}
_URL = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#:]+)"
    r"(?:/(?:blob|resolve|raw|tree)/([^/?#]+)(?:/([^?#]+))?)?/?(?:[?#].*)?"
)
"""A page of the hub: repository, revision and file."""


def locate(model: str, *, may_download: bool = True) -> Path:
    """Return the file or folder of a model; download it if necessary.

    Args:
        model: A path, a name of `gemwright models`, a hub id (`owner/name` or `owner/name:file.gguf`), the address of a
            page of the hub, or `ollama:` and the name of a model that Ollama has downloaded.
        may_download: Whether to download a model that is not in the hub's cache.

    Raises:
        CheckpointError: The model cannot be found or downloaded.
    """
    ensure_home()
    try:
        path = Path(model).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # the name is too long, the folder not accessible, or ~user unknown
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{model!r:.200} cannot be looked up ({reason}); check the path.") from error
    if model.startswith(PREFIX):
        return locate_ollama(model.removeprefix(PREFIX))
    model = _repository_of_url(model)
    name = model.removeprefix("google/").casefold()
    if name in _PUBLISHED:
        return _locate_repository(f"google/{name}", name, may_download=may_download)
    is_file_name = ":" not in model and (path.suffix in (".gguf", ".safetensors", ".npz") or is_part(path))
    if not is_repo_id(model) or is_file_name:
        raise CheckpointError(f"There is no file, folder or published model called {model!r:.200}; {_suggest(name)}.")
    return _locate_repository(model, model, may_download=may_download)


def name_base(model: str) -> str:
    """Return the name of a model by which an adapter made on it finds it, from any folder and in other programs.

    That is an absolute path, or the hub id of a published model; other names stay as they are.
    """
    if (path := Path(model).expanduser()).exists():
        return str(path.absolute())
    model = _repository_of_url(model)
    name = model.removeprefix("google/").casefold()
    return f"google/{name}" if name in _PUBLISHED else model


def _locate_repository(repository: str, name: str, *, may_download: bool) -> Path:
    """Return the place of a repository of the hub; for the demo that of its package, if it is installed."""
    if name == DEMO and (packaged := find_demo()) is not None:
        return packaged
    if may_download:
        return download(repository)
    if (copy := cached(repository)) is not None:
        return copy
    raise CheckpointError(f"{name} is not on this machine; fetch it with `gemwright pull {name}`.")


def _repository_of_url(text: str) -> str:
    """Return the hub id in the address of a page of the hub, or any other text as it is."""
    match = _URL.fullmatch(text)
    if match is None:
        return text
    repository, revision, file = match.groups()
    if revision not in (None, "main"):
        raise CheckpointError(f"{text:.200} is not of the revision main; download it and give the path.")
    return f"{repository}:{file}" if file and (file.endswith(".gguf") or is_part(Path(file))) else repository


def _suggest(name: str) -> str:
    """Return the published names that a name may mean, as a question, or where to find all of them."""
    if name in VARIANTS:
        return f"{name} was published as {', '.join(VARIANTS[name].checkpoints)}"
    plain = {re.sub(r"[^a-z0-9]", "", published): published for published in sorted(_PUBLISHED)}
    wanted = re.sub(r"[^a-z0-9]", "", name[:80])
    near = [key for key in plain if wanted and key in (wanted, f"{wanted}it", f"{wanted}pt")]
    near = near or difflib.get_close_matches(wanted, plain, 3, cutoff=0.85)
    names = [plain[key] for key in near]
    if re.fullmatch(r"[\w.-]+:[\w.-]+", name, re.ASCII):
        names.append(f"{PREFIX}{name}")
    return f"did you mean {' or '.join(names)}?"[:-1] if names else "`gemwright models` lists the names"
