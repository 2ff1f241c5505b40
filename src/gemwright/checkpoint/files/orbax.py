"""DeepMind's flax releases: a folder that Orbax wrote, read one leaf at a time.

The releases keep a flat dict whose keys hold slashes (`transformer/layer_0/attn/q_einsum` -> `w`); trees saved from the
modules are nested, without `transformer` and without the MLP's `w`; trainers wrap either in `params`. All get the
names of the releases here. Source: google-deepmind/gemma `gm/ckpts/_checkpoint.py` and `_compat.py`.
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

_ENCODINGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WRAPPERS = ("params/", "rlx_networks/policy_network/")
_MARKS = ("_METADATA", "manifest.ocdbt", "checkpoint")
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What Orbax lets through when a file is missing, cut short or not what it should be."""

KeyPath = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OrbaxFolder:
    """An open folder: a `TensorFile`, but that it is many files, so that no offset means anything.

    Attributes:
        path: The folder.
        tensors: Every tensor by the name that the releases give it, such as `transformer/layer_0/attn/q_einsum/w`.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    _places: Mapping[str, KeyPath]
    _last: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    _lock: Lock = field(default_factory=Lock)

    def read(self, name: str) -> NDArray[Any]:
        """Returns a whole tensor, read-only, in the file's own dtype.

        The last one is kept, because a stacked tensor is asked for once for each of its parts, and rows are asked for
        in many pieces although they are stored in one.

        Raises:
            CheckpointError: The tensor's bytes are missing or damaged.
        """
        with self._lock:
            if name not in self._last:
                self._last.clear()
                self._last[name] = _restore(self.path, self._places[name], name)
            return self._last[name]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Returns `read(name)[start:stop]`."""
        return self.read(name)[start:stop]

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Returns a tensor's values as bytes, `(nbytes,)`."""
        return self.read(name).reshape(-1).view(np.uint8)

    def release(self, name: str) -> None:
        """Does nothing: no file is mapped, and the tensor that is kept is about to be asked for again."""


def is_orbax(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds what Orbax leaves at the root of a tree; Orbax itself need not be installed."""
    return any((Path(folder) / name).is_file() for name in _MARKS)


def open_orbax(folder: str | os.PathLike[str]) -> OrbaxFolder:
    """Opens a folder that Orbax wrote; reads the description of its tree and no tensor.

    Raises:
        CheckpointError: It is no such folder, is damaged, or holds what no release holds.
        GemwrightError: Orbax is not installed.
    """
    path = Path(folder).absolute()
    ocp = _import_orbax()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if metadata is None:
        raise CheckpointError(f"{path}: is not a folder that Orbax wrote; name the folder that holds '_METADATA'.")
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, KeyPath] = {}
    for place, leaf in _parameters(_leaves(metadata.tree)).items():
        name = _name(place)
        if name in tensors:
            raise CheckpointError(f"{path}: tensor {name!r:.80} is there twice, nested and flat; fetch it again.")
        tensors[name] = _info(path, name, leaf)
        places[name] = place
    return OrbaxFolder(path, tensors, places)


def _import_orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise GemwrightError(
            "Reading a flax checkpoint needs Orbax, which is not installed; run pip install 'gemwright[orbax]'."
        ) from error
    return orbax.checkpoint


def _leaves(tree: Any, place: KeyPath = ()) -> dict[KeyPath, Any]:
    if not isinstance(tree, Mapping):
        return {place: tree}
    return {path: leaf for key, child in tree.items() for path, leaf in _leaves(child, (*place, str(key))).items()}


def _parameters(leaves: dict[KeyPath, Any]) -> dict[KeyPath, Any]:
    """Only what is under `params` where there is such a key: the rest is a trainer's own state."""
    wrapped = {place: leaf for place, leaf in leaves.items() if place[:1] == ("params",)}
    return wrapped or leaves


def _name(place: KeyPath) -> str:
    """The name that the releases give to a leaf."""
    name = "/".join(place)
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    name = name.replace("vision_encoder/", "SigLiPFromPatches_0/", 1) if name.startswith("vision_encoder/") else name
    if not name.startswith(("transformer/", "SigLiPFromPatches_0/")):
        name = f"transformer/{name}"
    return f"{name}/w" if name.endswith(("/mlp/gating_einsum", "/mlp/linear")) else name


def _info(path: Path, name: str, leaf: Any) -> TensorInfo:
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or str(dtype) not in _ENCODINGS:
        raise CheckpointError(f"{path}: {name!r:.80} is no float tensor but {dtype or type(leaf).__name__}.")
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
        raise _unreadable(path, error, name) from error
    for key in place:
        tree = tree[key]
    tree.flags.writeable = False
    return tree


def _unreadable(path: Path, error: BaseException, name: str = "") -> CheckpointError:
    what = f"tensor {name!r:.80}" if name else "the folder"
    reason = str(error).partition("\n")[0]
    return CheckpointError(f"{path}: {what} cannot be read ({reason:.200}); check the path or fetch it again.")
