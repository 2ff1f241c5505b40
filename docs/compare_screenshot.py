"""Draw the screenshot of the page of `gemwright compare`: PYTHONPATH=. python docs/compare_screenshot.py.

Needs the extra `dev`, chromium and chromedriver. The answers are written: the image shows the page, not a model.
"""

import tempfile
from pathlib import Path

from docs.page_screenshots import shoot
from selenium.webdriver.common.keys import Keys
from tests.serve.browser import Browser, wait

from gemwright.eval.compare.page import PageServer, Session
from gemwright.eval.compare.pairs import Pair, Shown
from gemwright.eval.compare.prompts import Prompt
from gemwright.eval.store import Records

PAIRS = 20
PROMPT = "How is a gemstone cut, and why does it sparkle?"
ANSWERS = (
    """A gemstone is cut so that light enters through the top, is reflected at the facets below, and leaves through \
the top again.

1. Rough: the cutter looks for cracks and decides on a shape.
2. Preform: the stone is ground to that shape.
3. Facets: each is ground and polished at its own angle.

The angles matter most: too flat, and light leaks out at the bottom.""",
    """Gemstones are cut with diamond saws.

They are very shiny because they are polished, and some people also like them uncut. The most famous one is the \
Koh-i-Noor.""",
)


def main() -> None:
    """Draw the page after some verdicts."""
    first, second = (Shown(name, (text,)) for name, text in zip("ab", ANSWERS, strict=True))
    pairs = [Pair(Prompt(str(number), (f"{PROMPT}{' ' * number}",)), first, second) for number in range(PAIRS)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Records(Path(folder) / "judgements.jsonl") as records,
        PageServer(Session(pairs, records, lambda *_: None)) as server,
    ):
        browser = Browser(server.address.rstrip("/"), Path(folder))
        browser.view(1080, 620)
        browser.open()
        for judged in range(7):
            wait(lambda judged=judged: browser.texts("#count") == [f"{judged} of {PAIRS} judged"])
            wait(lambda: browser.find("#tie").is_enabled())
            browser.find("body").send_keys(Keys.ARROW_LEFT)
        wait(lambda: browser.texts("#count") == [f"7 of {PAIRS} judged"])
        shoot(browser, "compare")
        browser.driver.quit()


if __name__ == "__main__":
    main()
