"""The text of a web page, such as a license that was saved from a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path

_HIDDEN = ("script", "style", "head", "noscript", "template", "nav", "svg", "button")
_BLOCKS = (
    "p",
    "div",
    "br",
    "li",
    "ul",
    "ol",
    "tr",
    "table",
    "section",
    "article",
    "main",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = ""
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if self._hidden:
            self._depth += tag == self._hidden
        elif tag in _HIDDEN:
            self._hidden, self._depth = tag, 1
        elif tag in _BLOCKS:
            self.parts.append("\n")
        if tag == "li":
            self.parts.append("- ")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            self._depth -= tag == self._hidden
            if not self._depth:
                self._hidden = ""
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(re.sub(r"\s+", " ", data))


def read_page(file: Path) -> str:
    """Return the text of a file; of a web page without scripts and menus, and of its article alone if it has one."""
    content = file.read_text("utf-8", "replace")
    if "<html" not in content[:4096].lower():
        return content
    article = re.search(r"<article\b.*?(<h1\b.*)</article>", content, re.DOTALL | re.IGNORECASE)
    reader = _Reader()
    reader.feed(article[1] if article else content)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return re.sub(r"\n\n(?=- )", "\n", text) + "\n"
