"""Checkpoints of a run: its state and position, written in the background by Orbax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gemwright.train.step import TrainState


class Checkpoints:
    """The checkpoints in a folder, of which the newest ones are kept.

    Args:
        folder: The folder; made if it does not exist.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: TrainState, position: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, which is complete or absent after any crash."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(dict(position)))  # pyright: ignore
        self._manager.save(int(state.step), args=args)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Return the state and position of the newest checkpoint; None if there is none.

        Args:
            like: A state of the same structure.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())  # pyright: ignore
        found = self._manager.restore(step, args=args)
        return found["state"], found["position"]

    def close(self) -> None:
        """Wait until all checkpoints are written."""
        self._manager.wait_until_finished()
        self._manager.close()
