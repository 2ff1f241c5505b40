"""Peak memory of loading a model onto a mesh: `python bench/mesh_memory.py MODEL MESH DTYPE [PROCESS COUNT ADDRESS]`.

MODEL is a published shape, such as gemma-2-2b, of which a file with random bfloat16 weights is written into a temporary
folder at `$TMPDIR/MODEL.safetensors` unless it is there. Prints the bytes of the weights on each device of the process,
and the largest resident memory of the process while loading, beyond what it had before.
"""

import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

MB = 1e6


def main() -> None:
    model, mesh, dtype, *distributed = sys.argv[1:]
    import jax

    if distributed:
        index, count, address = distributed
        jax.distributed.initialize(address, int(count), int(index))
    from gemwright import sharding, tree
    from gemwright.checkpoint.files.safetensors import open_safetensors
    from gemwright.checkpoint.load import load_weights
    from gemwright.checkpoint.names.huggingface import map_huggingface
    from gemwright.model.params import param_specs
    from gemwright.variants import VARIANTS

    config = VARIANTS[model].config
    mapping = map_huggingface(config)
    path = Path(tempfile.gettempdir()) / f"{model}.safetensors"
    if not path.exists():
        write(path, {tensor.name: tensor.shape for tensor in mapping.values()})
    jax.block_until_ready(jax.device_put(np.zeros(8)))
    before = resident()
    with sharding.use(sharding.make_mesh_from_text(mesh)), Peak() as peak:
        params = load_weights(open_safetensors(path), mapping, config, dtype)
        jax.block_until_ready(params)
    leaves = jax.tree.leaves(params)
    held: dict[int, int] = {}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    largest = max(spec.size for spec in tree.flatten(param_specs(config)).values()) * leaves[0].dtype.itemsize
    print(f"{model} {mesh} {dtype}: weights {sum(leaf.nbytes for leaf in leaves) / MB:,.0f} MB in all")
    print(f"  largest tensor {largest / MB:,.0f} MB")
    print(f"  on the devices of this process {', '.join(f'{n / MB:,.0f}' for n in held.values())} MB")
    print(
        f"  peak of this process {(peak.found - before) / MB:,.0f} MB, for {sum(held.values()) / MB:,.0f} MB of parts"
    )


def resident() -> int:
    """Return the anonymous memory of this process in bytes; pages of mapped files do not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


class Peak:
    """Samples the memory of this process every few milliseconds."""

    def __enter__(self) -> "Peak":
        self.found, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.found = max(self.found, resident())

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write random bfloat16 weights, one tensor at a time."""
    import json

    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    block = (random.standard_normal(1 << 20).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            size = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2
            for start in range(0, size, len(block)):
                file.write(block[: size - start].tobytes())


if __name__ == "__main__":
    main()
