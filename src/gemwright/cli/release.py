"""`gemwright release`: check a folder and publish it."""

from pathlib import Path
from typing import Annotated

import typer

from gemwright.cli import render
from gemwright.errors import GemwrightError
from gemwright.runtime.installation import require_extra

PACKAGES = ("phonenumbers",)
"""Packages of the extra `release` that the checks need."""


def release(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that `gemwright card` has written.")],
    to: Annotated[
        str,
        typer.Option(metavar="SITE:NAME", help="hub:OWNER/NAME, or kaggle:OWNER/MODEL/FRAMEWORK/VARIATION."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list what would be uploaded, without the network.")
    ] = False,
) -> None:
    """Check a folder, and publish it on the hub or Kaggle.

    A folder with a secret, personal data, a missing license file, a changed file or an evaluation older than the
    weights is refused. Run the same command again to continue an interrupted upload.
    """
    require_extra("release", PACKAGES, "Checking a release")
    from gemwright.release.publishing import upload
    from gemwright.release.publishing.checks import check_release, read_license
    from gemwright.release.publishing.croissant import FILE as CROISSANT

    destination = upload.parse_destination(to)
    render.status("Checking the files ...")
    problems = check_release(folder)
    for problem in problems:
        render.warn(f"{problem}.")
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise GemwrightError(f"{folder} is not published because of {count}; correct what is listed above.")
    files = upload.describe_files(folder)
    for file in files:
        render.write(f"{file.sha256}  {file.nbytes:>13,}  {file.name}\n")
    total = render.size(sum(file.nbytes for file in files))
    if destination.site == "kaggle":
        upload.write_kaggle_metadata(folder, destination.name, folder.resolve().name, read_license(folder))
    if dry_run:
        render.note(f"All checks passed: {len(files)} files, {total}, would be uploaded to {to}.")
        return
    render.status(f"Uploading {total} to {to} ...")
    if destination.site == "hub":
        kind = "dataset" if any(file.name == CROISSANT for file in files) else "model"
        render.write(f"{upload.upload_to_hub(destination.name, files, kind)}\n")
    else:
        render.write(f"{upload.upload_to_kaggle(folder, destination.name, read_license(folder))}\n")
