"""Publish a folder on the Hugging Face hub or on Kaggle.

Sources: huggingface_hub 2.4 `hf_api.py`; Kaggle's kaggle-api wiki (model metadata), kagglehub README.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gemwright.checkpoint.files.atomic import replace_file
from gemwright.checkpoint.hub import TOKENS, is_repo_id
from gemwright.errors import GemwrightError
from gemwright.release.publishing.notices import APACHE, GEMMA
from gemwright.release.publishing.provenance import KAGGLE, hash_file, list_files
from gemwright.runtime.installation import require_extra

_KAGGLE = re.compile(r"[\w-]+/[\w-]+/[\w-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Destination:
    """Where a release goes: a repository of the hub, or OWNER/MODEL/FRAMEWORK/VARIATION of Kaggle."""

    site: Literal["hub", "kaggle"]
    name: str


@dataclass(frozen=True)
class PublishedFile:
    """A file of a release.

    Attributes:
        name: Its path in the repository.
        path: Its path on this machine.
        nbytes: Its size.
        sha256: The SHA-256 of its content, in hexadecimal.
    """

    name: str
    path: Path
    nbytes: int
    sha256: str


def parse_destination(text: str) -> Destination:
    """Return the destination of `hub:OWNER/NAME` or `kaggle:OWNER/MODEL/FRAMEWORK/VARIATION`.

    Raises:
        GemwrightError: It has another form.
    """
    site, _, name = text.partition(":")
    if site == "hub" and is_repo_id(name) and ":" not in name:
        return Destination("hub", name)
    if site == "kaggle" and _KAGGLE.fullmatch(name):
        return Destination("kaggle", name)
    raise GemwrightError(
        f"{text!r:.200} is no destination; write hub:OWNER/NAME or kaggle:OWNER/MODEL/FRAMEWORK/VARIATION."
    )


def describe_files(folder: Path) -> list[PublishedFile]:
    """Return the files that are published."""
    return [
        PublishedFile(file.relative_to(folder).as_posix(), file, file.stat().st_size, hash_file(file))
        for file in list_files(folder)
    ]


def upload_to_hub(name: str, files: Sequence[PublishedFile], kind: Literal["model", "dataset"] = "model") -> str:
    """Upload files in one commit, and return its address. A new repository is private.

    Files that an interrupted upload has transferred are not transferred again, and nothing of a release is visible
    before all of it is.

    Raises:
        GemwrightError: The token, the network or the hub prevents it.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    hub = HfApi()
    operations = [CommitOperationAdd(file.name, str(file.path)) for file in files]
    try:
        if not hub.repo_exists(name, repo_type=kind):
            hub.create_repo(name, private=True, exist_ok=True, repo_type=kind)
        commit = hub.create_commit(name, operations, commit_message="Release", repo_type=kind)
    except HfHubHTTPError as error:
        raise GemwrightError(f"{name}: {_explain(error.response.status_code, error.server_message)}.") from error
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__ or error
        raise GemwrightError(
            f"{name}: the upload was interrupted ({type(cause).__name__}: {cause!s:.200}); run the same again to "
            "continue."
        ) from error
    return str(commit.commit_url)


def _explain(status: int, said: str | None) -> str:
    if status in (401, 403):
        return f"the hub refuses this token; set HF_TOKEN to one from {TOKENS} that may write there"
    if status >= 500 or status == 429:
        return f"the hub cannot be reached now (status {status}); run the same again later to continue"
    return f"the hub refuses the upload (status {status}: {said or 'no reason':.200}); check the name"


def write_kaggle_metadata(folder: Path, name: str, title: str, license_name: str) -> None:
    """Write the metadata of a model and of its variation for Kaggle's client, beside the files.

    Args:
        folder: The folder of the release.
        name: OWNER/MODEL/FRAMEWORK/VARIATION.
        title: Title of the model.
        license_name: Its license, as the hub calls it.
    """
    owner, model, framework, variation = name.split("/")
    known = {one.hub: one.kaggle for one in (GEMMA, APACHE)}
    card = (folder / "README.md").read_text("utf-8")
    described = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()
    documents: tuple[dict[str, Any], dict[str, Any]] = (
        {
            "ownerSlug": owner,
            "title": title[:50],
            "slug": model,
            "subtitle": "",
            "isPrivate": True,
            "description": described,
            "publishTime": "",
            "provenanceSources": "provenance.json",
        },
        {
            "ownerSlug": owner,
            "modelSlug": model,
            "instanceSlug": variation,
            "framework": framework,
            "overview": title,
            "usage": "See README.md.",
            "licenseName": known.get(license_name, license_name),
            "fineTunable": True,
            "trainingData": [],
        },
    )
    for file_name, document in zip(KAGGLE, documents, strict=True):
        with replace_file(folder / file_name) as file:
            file.write(json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")


def upload_to_kaggle(folder: Path, name: str, license_name: str) -> str:
    """Upload a release to Kaggle with kagglehub, and return its address.

    Raises:
        GemwrightError: kagglehub is not installed, or Kaggle refuses.
    """
    require_extra("kaggle", ("kagglehub",), "Publishing on Kaggle")
    import kagglehub  # pyright: ignore

    known = {one.hub: one.kaggle for one in (GEMMA, APACHE)}
    try:
        kagglehub.model_upload(  # pyright: ignore
            name, str(folder), known.get(license_name, license_name), ignore_patterns=[*KAGGLE, ".cache/"]
        )
    except Exception as error:  # kagglehub has no class of its own errors
        raise GemwrightError(f"{name}: Kaggle refuses the upload ({error!s:.200}); check the token.") from error
    return f"https://www.kaggle.com/models/{name}"
