"""Hooks of mkdocs: pages made from files outside this folder, and links to them. `make site` builds the documentation.

The README is the first page, and the reference of the Python interface has the docstrings of its public names. Links of
the pages are written for readers of the repository: those to other pages are rewritten, and those to files that are not
part of the site become their names.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "bench.md": "bench/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site that are files outside this folder."""
REFERENCE = {
    "Models": ["gemwright.loading.load", "gemwright.api.Model", "gemwright.api.Score"],
    "Text": [
        "gemwright.options.Options",
        "gemwright.options.Windows",
        "gemwright.generate.output.Completion",
        "gemwright.generate.output.Stream",
        "gemwright.generate.sampling.Sampling",
        "gemwright.text.chat.Message",
    ],
    "Watermark": [
        "gemwright.generate.watermark.read_watermark",
        "gemwright.generate.watermark.detect",
        "gemwright.generate.watermark.Detection",
    ],
    "Errors": ["gemwright.errors.GemwrightError", "gemwright.errors.CheckpointError"],
}
"""Names of the Python interface by section; all of `gemwright.__all__` are among them."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in this folder."""
    from mkdocs.structure.files import File  # the tests read the tables without mkdocs

    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "reference.md", content=make_reference()))
    return files


def make_reference() -> str:
    """Return the reference of the Python interface."""
    sections = (f"## {title}\n\n" + "\n\n".join(f"::: {name}" for name in names) for title, names in REFERENCE.items())
    head = "# Python reference\n\nMade from the docstrings; [the Python interface](python.md) has examples."
    return "\n\n".join([head, *sections]) + "\n"


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    source = ROOT / PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    by_source = {(ROOT / path).resolve(): name for name, path in PAGES.items()}
    by_source |= {(ROOT / "docs" / file.src_uri).resolve(): file.src_uri for file in files}

    def rewrite(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        name = by_source.get((source.parent / target).resolve())
        if name is None:
            return text if match["image"] == "" else ""
        return f"{match['image']}[{text}]({name}{anchor})"

    pattern = r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)"
    return re.sub(pattern, rewrite, markdown)
