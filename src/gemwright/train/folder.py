"""The folder of a run: used by one process at a time, and continued only with what the run was made with.

A folder without `run.json` that is not empty is not a run's, and is never written to.
"""

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.errors import GemwrightError

MARKER = "run.json"
LOCK = "run.lock"
SAVED = "checkpoints/[0-9]*"
Note = Callable[[str], None]
"""Called with a sentence for the user."""


@contextmanager
def claimed(folder: Path, made_with: Mapping[str, Any], accept_changes: bool, note: Note) -> Generator[None]:
    """Return a context that is entered when `claim` has."""
    claim(folder, made_with, accept_changes, note)
    yield


def claim(folder: Path, made_with: Mapping[str, Any], accept_changes: bool, note: Note) -> None:
    """Write what a run is made with to its locked folder, or compare it with what the folder's run was made with.

    Args:
        folder: The folder. Nothing is compared if nothing of its run is saved.
        made_with: See `made_with.describe`.
        accept_changes: Continue the run although something changed.
        note: Called with what changed.

    Raises:
        GemwrightError: Something changed, or the folder cannot be read or written.
    """
    path = folder / MARKER
    now = json.loads(json.dumps(made_with))
    before = _read(path) if path.exists() else now
    changed = compare(before, now) if any(folder.glob(SAVED)) else []
    if changed and not accept_changes:
        raise GemwrightError(
            f"{folder} has a run made with something else ({'; '.join(changed)}); use the same again, give another "
            "folder, or accept the changes with --accept-changes."
        )
    if changed:
        note(f"Continuing with changes: {'; '.join(changed)}.")
    if before["machine"] != now["machine"]:
        note("This machine or its software differs from before, so results may differ by rounding.")
    if not path.exists() or before != now:
        with replace_file(path) as file:
            file.write(json.dumps(made_with, indent=1).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if all(isinstance(found[part], dict) for part in ("model", "data", "held_out", "recipe", "machine")):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise GemwrightError(f"{path} cannot be read or is not of a run; give another folder.")


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what changed in a run, a phrase for each; the machine does not count."""
    changed: list[str] = []
    if before["model"].get("digest") != now["model"]["digest"]:
        changed.append(f"the model was {before['model'].get('name')} and is {now['model']['name']}, other weights")
    changed += _compare_data("training", before["data"], now["data"])
    if now["held_out"]["files"] != now["data"]["files"] or before["held_out"].get("files") != before["data"].get(
        "files"
    ):
        changed += _compare_data("held-out", before["held_out"], now["held_out"])
    for name in sorted({*before["recipe"], *now["recipe"]}):
        old, new = before["recipe"].get(name), now["recipe"].get(name)
        if old != new:
            changed.append(f"{name} was {old} and is {new}")
    changed += _compare_objectives(*(run.get("objective", {"name": "next-token"}) for run in (before, now)))
    length = before["recipe"].get("length") == now["recipe"].get("length")
    if not changed and length and before["data"].get("fingerprint") != now["data"]["fingerprint"]:
        changed.append("the held-out records, the images, the tokenizer, the chat template or how the data are read")
    return changed


def _compare_objectives(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted({*before, *now}, key=lambda name: (name != "name", name))
    titles = {name: "the objective" if name == "name" else f"{name} of the objective" for name in names}
    return [f"{titles[n]} was {before.get(n)} and is {now.get(n)}" for n in names if before.get(n) != now.get(n)]


def _compare_data(title: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = before.get("files", {}), now["files"]
    if list(old.values()) == list(new.values()):
        return []
    names = [name for name, digest in new.items() if digest not in old.values()]
    names += [f"{name} is left out" for name in list(old)[len(new) :]]
    return [f"the {title} data changed: {', '.join(names[:3]) or 'the order of the files'}"]
