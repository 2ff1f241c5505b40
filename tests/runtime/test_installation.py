"""The advice on extras installs this copy, not a package of the same name from an index."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from gemwright.errors import GemwrightError
from gemwright.runtime.installation import install_command, require_extra


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, origin: dict[str, Any] | None) -> None:
    """Make the metadata of an installation the first that Python finds."""
    place = folder / "gemwright-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: gemwright\nVersion: 1.0\n")
    if origin is not None:
        (place / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(folder))
    assert metadata.version("gemwright") == "1.0"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///home/me/gemwright", "dir_info": {"editable": True}}, "-e '/home/me/gemwright[demo]'"),
        ({"url": "file:///home/me/my%20clone", "dir_info": {}}, "'/home/me/my clone[demo]'"),
        (
            {"url": "https://host/o/gemwright", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "'gemwright[demo] @ git+https://host/o/gemwright'",
        ),
        (None, "'gemwright[demo]'"),
    ],
)
def test_an_extra_is_added_to_this_copy(
    origin: dict[str, Any] | None, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path, origin)
    assert install_command("demo") == f"pip install {command}"


def test_a_clone_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    clone = Path(__file__).parents[2]
    assert install_command("demo") == f"pip install -e '{clone}[demo]'"


def test_the_missing_packages_of_an_extra_are_named() -> None:
    require_extra("serve", ("json", "numpy"), "Serving")
    with pytest.raises(GemwrightError, match=r"^Serving needs nosuch1, nosuch2; run: pip install .*\[serve\]"):
        require_extra("serve", ("json", "nosuch1", "nosuch2"), "Serving")
