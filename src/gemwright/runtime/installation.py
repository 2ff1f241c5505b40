"""How this copy of gemwright was installed, for advice on its extras."""

import json
import shlex
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from gemwright.errors import GemwrightError

_CLONE = Path(__file__).parents[3]


def require_extra(extra: str, packages: Iterable[str], purpose: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: Its name.
        packages: Names under which they are imported.
        purpose: What needs them, as the beginning of a sentence.

    Raises:
        GemwrightError: One is missing.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise GemwrightError(f"{purpose} needs {', '.join(missing)}; run: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this copy: from its clone, file or repository, or else by name.

    Source: PEP 610 (`direct_url.json`).
    """
    origin = _origin()
    url = str(origin.get("url") or "")
    if urlsplit(url).scheme == "file":
        editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{url2pathname(urlsplit(url).path)}[{extra}]')}"
    if url:
        tool = f"{vcs}+" if (vcs := origin.get("vcs_info", {}).get("vcs")) else ""
        return f"pip install {shlex.quote(f'gemwright[{extra}] @ {tool}{url}')}"
    return f"pip install {shlex.quote(f'gemwright[{extra}]')}"


def _origin() -> dict[str, Any]:
    """Return where this copy was installed from; without an installation, the clone that it runs from."""
    from importlib import metadata

    try:
        return json.loads(metadata.distribution("gemwright").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        is_clone = (_CLONE / "pyproject.toml").is_file() and (_CLONE / "native").is_dir()
        return {"url": _CLONE.as_uri(), "dir_info": {"editable": True}} if is_clone else {}
