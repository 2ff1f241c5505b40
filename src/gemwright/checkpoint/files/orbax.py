"""DeepMind's flax releases: a folder written by Orbax, read one leaf at a time.

The releases store a flat dict whose keys contain slashes (`transformer/layer_0/attn/q_einsum` -> `w`). Trees saved from
the modules are nested, without `transformer` and without the MLP's `w`; trainers wrap either in `params`. All are read
under the names of the releases. Source: google-deepmind/gemma `gm/ckpts/_checkpoint.py` and `_compat.py`.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.tensor_file import TensorInfo
from gemwright.errors import CheckpointError, GemwrightError
from gemwright.runtime.installation import install_command

_ENCODINGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WRAPPERS = ("params/", "rlx_networks/policy_network/")
_MARKERS = ("_METADATA", "manifest.ocdbt", "checkpoint")
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Exceptions that Orbax raises when a file is missing, truncated or malformed."""

KeyPath = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OrbaxFolder:
    """An open folder: a `TensorFile`, except that it consists of many files, so that offsets are undefined.

    Attributes:
        path: The folder.
        tensors: Every tensor by its name in the releases, such as `transformer/layer_0/attn/q_einsum/w`.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    _places: Mapping[str, KeyPath]
    _last: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    _lock: Lock = field(default_factory=Lock)

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor, read-only, in its stored dtype.

        The last tensor is cached, because the parts of a stacked tensor and the rows of a matrix are read one by one.

        Raises:
            CheckpointError: The tensor's bytes are missing or damaged.
        """
        with self._lock:
            if name not in self._last:
                self._last.clear()
                self._last[name] = _restore(self.path, self._places[name], name)
            return self._last[name]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return `read(name)[start:stop]`."""
        return self.read(name)[start:stop]

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's values as bytes, `(nbytes,)`."""
        return self.read(name).reshape(-1).view(np.uint8)

    def release(self, name: str) -> None:
        """Do nothing: no file is mapped, and the cached tensor is about to be read again."""


def is_orbax(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder is the root of a tree written by Orbax, which need not be installed."""
    return any((Path(folder) / name).is_file() for name in _MARKERS)


def open_orbax(folder: str | os.PathLike[str]) -> OrbaxFolder:
    """Open a folder written by Orbax: read the description of its tree and no tensor.

    Raises:
        CheckpointError: The folder was not written by Orbax, is damaged, or holds leaves that no release has.
        GemwrightError: Orbax is not installed.
    """
    path = Path(folder).absolute()
    ocp = _import_orbax()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata
    except _DAMAGED as error:
        raise _read_error(path, error) from error
    if metadata is None:
        raise CheckpointError(f"{path}: was not written by Orbax; give the folder that holds '_METADATA'.")
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, KeyPath] = {}
    for place, leaf in _select_parameters(_flatten_tree(metadata.tree)).items():
        name = _release_name(place)
        if name in tensors:
            raise CheckpointError(f"{path}: tensor {name!r:.80} appears twice, nested and flat; fetch it again.")
        tensors[name] = _describe_leaf(path, name, leaf)
        places[name] = place
    return OrbaxFolder(path, tensors, places)


def _import_orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise GemwrightError(
            f"Reading a flax checkpoint needs Orbax, which is not installed; run {install_command('orbax')}."
        ) from error
    return orbax.checkpoint


def _flatten_tree(tree: Any, place: KeyPath = ()) -> dict[KeyPath, Any]:
    if not isinstance(tree, Mapping):
        return {place: tree}
    return {
        path: leaf for key, child in tree.items() for path, leaf in _flatten_tree(child, (*place, str(key))).items()
    }


def _select_parameters(leaves: dict[KeyPath, Any]) -> dict[KeyPath, Any]:
    """Return the leaves under `params` if there is such a key: the others are a trainer's state."""
    wrapped = {place: leaf for place, leaf in leaves.items() if place[:1] == ("params",)}
    return wrapped or leaves


def _release_name(place: KeyPath) -> str:
    """Return the name of a leaf in the releases."""
    name = "/".join(place)
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    name = name.replace("vision_encoder/", "SigLiPFromPatches_0/", 1) if name.startswith("vision_encoder/") else name
    if not name.startswith(("transformer/", "SigLiPFromPatches_0/")):
        name = f"transformer/{name}"
    return f"{name}/w" if name.endswith(("/mlp/gating_einsum", "/mlp/linear")) else name


def _describe_leaf(path: Path, name: str, leaf: Any) -> TensorInfo:
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or str(dtype) not in _ENCODINGS:
        kind = dtype or type(leaf).__name__
        raise CheckpointError(f"{path}: {name!r:.80} is not a float tensor but {kind}; use a released checkpoint.")
    return TensorInfo(tuple(shape), _ENCODINGS[str(dtype)], 0, math.prod(shape) * np.dtype(dtype).itemsize)


def _restore(path: Path, place: KeyPath, name: str) -> NDArray[Any]:
    ocp = _import_orbax()
    item: Any = 0
    restore_args: Any = ocp.RestoreArgs(restore_type=np.ndarray)
    for key in reversed(place):
        item, restore_args = {key: item}, {key: restore_args}
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(
                path, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
            )
    except _DAMAGED as error:
        raise _read_error(path, error, name) from error
    for key in place:
        tree = tree[key]
    tree.flags.writeable = False
    return tree


def _read_error(path: Path, error: BaseException, name: str = "") -> CheckpointError:
    what = f"tensor {name!r:.80}" if name else "the folder"
    reason = str(error).partition("\n")[0]
    return CheckpointError(f"{path}: {what} cannot be read ({reason:.200}); check the path or fetch it again.")
