"""Draw the screenshots of the web page: PYTHONPATH=. python docs/page_screenshots.py.

Needs the extra `dev`, chromium and chromedriver. The replies are scripted: the images show the page, not a model.
"""

import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from docs.screenshots import IMAGES, paint_scene
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver.common.keys import Keys
from tests.serve.browser import Browser, wait
from tests.serve.server import run_server
from tests.serve.stand_in import Script, create

from gemwright.images.locations import MASK_CODES, parse
from gemwright.images.masks import SIDE, MaskDecoder
from gemwright.serve.settings import Settings

COLORS = 96
"""Number of colors of an image; enough for the page, and a third of the bytes."""
QUESTION, REPLY = (
    "How do I count the words of a text in Python?",
    """Use a `Counter`; it is a dictionary that **counts what it is given**:

```python
from collections import Counter

def count_words(text: str) -> Counter[str]:
    return Counter(text.lower().split())
```

For `"the cat and the hat"` it gives:

| word | count |
|---|---|
| the | 2 |
| cat, and, hat | 1 |
""",
)


class PaintedMasks:
    """Decodes to the masks of a painted scene: the codes of an object are all its index."""

    def __init__(self, masks: list[NDArray[np.bool_]]):
        self._masks = masks

    def decode(self, codes: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the mask of an object within its box, as `MaskDecoder` does."""
        mask = Image.fromarray(self._masks[codes[0]])
        crop = mask.crop(mask.getbbox()).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return np.asarray(crop, np.float32) / 127.5 - 1


def shoot(browser: Browser, name: str) -> None:
    """Save what the browser shows."""
    path = IMAGES / f"page-{name}.png"
    browser.driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_chat(browser: Browser, script: Script) -> None:
    """Draw a conversation in light and dark, and on a phone."""
    script.models = {"gemma-3-4b-it": {"images": True}}
    script.replies = [["A lighthouse keeper tends the lamp."], [REPLY[i : i + 4] for i in range(0, len(REPLY), 4)]]
    script.pause = 0.01
    browser.view(1080, 760)
    browser.ready()
    browser.ask("What does a lighthouse keeper do?")
    browser.click("#new")
    browser.ask(QUESTION)
    shoot(browser, "chat")
    browser.view(1080, 760, "dark")
    shoot(browser, "dark")
    browser.view(390, 760, "dark")
    shoot(browser, "phone")


def draw_tokens(browser: Browser, script: Script) -> None:
    """Draw the probabilities of the tokens of a reply."""
    script.replies = [["The", " sea", " is", " calm", " tonight", ",", " the", " tide", " is", " full", "."]]
    browser.view(1080, 560)
    browser.ready()
    browser.click("#open-settings")
    browser.click("#logprobs")
    browser.find("#settings").send_keys(Keys.ESCAPE)
    browser.ask("How does Dover Beach begin?")
    browser.button("Token probabilities")
    browser.find(".tokens").send_keys(*[Keys.ARROW_RIGHT] * 4)
    shoot(browser, "tokens")


def draw_objects(browser: Browser, script: Script, scene: Path, answer: str) -> None:
    """Draw the boxes and masks of a reply about a painted scene."""
    script.models = {"paligemma2-3b-mix-448": {"images": True, "single_turn": True, "tuned": False}}
    script.replies = [[answer]]
    browser.view(1080, 760)
    browser.ready()
    browser.find("#attach-file").send_keys(str(scene))
    wait(lambda: browser.all("#attachments img"))
    browser.ask("segment ball ; mug")
    wait(lambda: len(browser.all(".overlay .mask")) == 2)
    browser.run("document.querySelector('.reply').scrollIntoView()")
    shoot(browser, "objects")


def draw_infill(browser: Browser, script: Script) -> None:
    """Draw the completion of a gap."""
    script.models = {"codegemma-2b": {"infill": True, "tuned": False}}
    script.replies = [["    for word in text.lower().split():\n", "        counts[word] = counts.get(word, 0) + 1\n"]]
    browser.view(1080, 760)
    browser.ready()
    browser.click("#complete-tab")
    browser.find("#before").send_keys(
        "def count_words(text: str) -> dict[str, int]:\n    counts: dict[str, int] = {}\n"
    )
    browser.find("#after").send_keys("    return counts\n", Keys.CONTROL, Keys.ENTER)
    wait(lambda: browser.find("#accept").is_displayed() and browser.find("#accept").is_enabled())
    shoot(browser, "infill")


def main() -> None:
    """Draw all screenshots."""
    image, masks, answer = paint_scene()
    for index, found in enumerate(parse(answer)):
        answer = answer.replace(f" {found.label}", f"<seg{index:03}>" * MASK_CODES + f" {found.label}")
    script, decoder = Script(), cast(MaskDecoder, PaintedMasks(masks))
    with tempfile.TemporaryDirectory() as folder, run_server(create(script, Settings(mask_decoder=decoder))) as address:
        scene = Path(folder) / "scene.png"
        Image.fromarray(image).save(scene)
        browser = Browser(address, Path(folder))
        steps: list[Any] = [draw_chat, draw_tokens, lambda *each: draw_objects(*each, scene, answer), draw_infill]
        for step in steps:
            script.reset()
            browser.reset()
            step(browser, script)
        browser.driver.quit()


if __name__ == "__main__":
    main()
