"""Checkpoints of a run: its state and position, written in the background by Orbax.

Orbax writes a checkpoint under a temporary name and renames it, so that it is complete or absent after any crash.
Checksums of its files are written before it is renamed: a checkpoint that does not match them is damaged.
"""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from gemwright import tree
from gemwright.checkpoint.files.atomic import free_bytes, replace_file
from gemwright.errors import CheckpointError
from gemwright.runtime import distributed
from gemwright.train.step import TrainState

CHECKSUMS = "checksums.json"
_ITEMS = ("state", "position")
_ORBAX_LOG = logging.getLogger("absl")


class Checkpoints:
    """The checkpoints in a folder, of which the newest ones are kept.

    Args:
        folder: The folder, of this process alone; made if it does not exist.
        made_with: What the run is made with, which is saved too.
        note: Called with a sentence about each damaged checkpoint.
        keep: Number of checkpoints to keep.
    """

    def __init__(
        self,
        folder: Path,
        made_with: Mapping[str, Any],
        note: Callable[[str], None] = lambda sentence: None,
        keep: int = 3,
    ):
        self._folder, self._made_with, self._note = folder.absolute(), made_with, note
        self._saving: int | None = None
        self._log_level = _ORBAX_LOG.level
        _ORBAX_LOG.setLevel(logging.CRITICAL)  # it logs tracebacks of errors that are raised here
        newest = self._find_newest() if distributed.is_first() else None
        newest = distributed.largest(-1 if newest is None else newest)
        self.newest = None if newest < 0 else newest
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),  # pyright: ignore
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise self._error(error) from error

    def _find_newest(self) -> int | None:
        """Return the step of the newest whole checkpoint, after moving damaged ones out of the way."""
        if not self._folder.is_dir():
            return None
        steps = sorted((int(path.name) for path in self._folder.iterdir() if path.name.isdigit()), reverse=True)
        for step in steps:
            path = self._folder / str(step)
            problem = find_damage(path)
            if problem is None:
                return step
            self._set_aside(path, problem)
        if steps:
            self._note("No whole checkpoint is left, so the run starts from its beginning.")
        return None

    def _set_aside(self, path: Path, problem: str) -> None:
        """Rename a checkpoint that cannot be used, so that another of its step can be written."""
        names = (f"{path.name}.damaged{'.' * bool(number)}{number or ''}" for number in itertools.count())
        target = next(place for name in names if not (place := path.with_name(name)).exists())
        path.rename(target)
        self._note(f"The checkpoint {path} is damaged ({problem}) and is kept as {target.name}.")

    def save(self, state: TrainState, position: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint of the state, after the one before is written.

        Raises:
            CheckpointError: This or the checkpoint before cannot be written; the others remain.
        """
        step = int(state.step)
        self.wait()
        if step == self.newest:
            return
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if free_bytes(self._folder) < nbytes // 2:  # it is compressed
            raise self._error(f"it takes about {nbytes:,} bytes, and {free_bytes(self._folder):,} are free")
        document = {"shapes": describe_shapes(state), "made_with": self._made_with, **position}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(document))  # pyright: ignore
        self._saving = step
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._error(error) from error

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: It cannot be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._error(error) from error
        self.newest = self._manager.latest_step()

    def _write_checksums(self) -> None:
        """Write the checksums of a checkpoint that is about to be renamed; called in the background."""
        if not distributed.is_first():
            return
        (path,) = self._folder.glob(f"{self._saving}.*-tmp*")
        text = json.dumps(_checksums(path), indent=1).encode()
        with replace_file(path / CHECKSUMS, len(text)) as file:
            file.write(text)

    def read_position(self, like: TrainState) -> dict[str, Any]:
        """Return the position of the newest checkpoint, after a check that its state has the structure of `like`.

        Raises:
            CheckpointError: It has another structure.
        """
        args = ocp.args.Composite(position=ocp.args.JsonRestore())  # pyright: ignore
        position = self._manager.restore(self.newest, args=args)["position"]
        if position["shapes"] != describe_shapes(like):
            raise CheckpointError(
                f"The run in {self._folder.parent} trains other arrays than this recipe, such as of another rank or "
                "optimizer, and cannot continue with it; give another folder."
            )
        return position

    def restore(self, like: TrainState) -> TrainState:
        """Return the state of the newest checkpoint; `like` has its structure, with shapes and dtypes as leaves."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))  # pyright: ignore
        return self._manager.restore(self.newest, args=args)["state"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            if error is None or jax.process_count() == 1:  # it waits for the other processes, which may be gone
                self._manager.close()
        except Exception as failure:
            if error is None:
                raise self._error(failure) from failure
        finally:
            _ORBAX_LOG.setLevel(self._log_level)

    def _error(self, problem: Exception | str) -> CheckpointError:
        at = "no checkpoint is" if self.newest is None else f"the checkpoint of step {self.newest} is"
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        return CheckpointError(
            f"A checkpoint cannot be written to {self._folder} ({reason}), {at} kept; make room or correct the folder, "
            "then run the same again."
        )


def find_damage(path: Path) -> str | None:
    """Return why a checkpoint cannot be used; None if it is whole."""
    try:
        expected = json.loads((path / CHECKSUMS).read_bytes())
        found = _checksums(path)
    except FileNotFoundError:
        return "its checksums are missing"
    except (OSError, ValueError) as error:
        return f"its checksums cannot be read: {error}"
    if not isinstance(expected, dict) or not expected:
        return "its checksums cannot be read"
    return next(
        (f"{name} changed" for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)), None
    )


def describe_shapes(state: Any) -> dict[str, str]:
    """Return the dtype and shape of each array of a state, by its path."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in tree.leaves(state)}


def _checksums(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint's items, by its path."""
    found: dict[str, str] = {}
    for item in _ITEMS:
        for folder, _, names in os.walk(path / item):
            for name in names:
                with (Path(folder) / name).open("rb") as file:
                    key = os.path.relpath(file.name, path)
                    found[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
