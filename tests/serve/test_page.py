"""The page in a real Chromium, with a server that replies by a script."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium")
from selenium.webdriver.common.keys import Keys

from tests.serve.browser import CHROMIUM, DRIVER, Browser, wait
from tests.serve.server import run_server
from tests.serve.stand_in import Script, create, error

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, Script]]:
    script = Script()
    with run_server(create(script)) as address:
        browser = Browser(address, tmp_path_factory.mktemp("downloads"))
        yield browser, script
        browser.driver.quit()


@pytest.fixture
def script(started: tuple[Browser, Script]) -> Script:
    started[1].reset()
    return started[1]


@pytest.fixture
def browser(started: tuple[Browser, Script], script: Script) -> Iterator[Browser]:
    browser = started[0]
    browser.view(1200, 800)
    browser.reset()
    yield browser
    assert browser.errors() == []


def test_replies_are_streamed_rendered_and_kept(browser: Browser, script: Script):
    script.replies = [
        ["A **bo", "ld** word, `code`\n\n", "```python\nx = 1\n", "```\n\n", "| a | b |\n|-|-|\n| 1 | 2 |"]
    ]
    browser.ready()
    browser.ask("Hello")
    assert browser.texts(".reply .body strong, .reply .body pre code, .reply td") == ["bold", "x = 1\n", "1", "2"]
    assert browser.texts(".user") == ["You\nHello"]
    assert browser.texts(".code-top span") == ["python"]
    assert script.requests[0]["messages"] == [{"role": "user", "content": "Hello"}]
    assert browser.texts("#context") == ["15 of 8,192 tokens of context"]
    browser.driver.refresh()
    wait(lambda: browser.texts(".bubble") == ["Hello"])
    assert browser.texts(".reply .body strong") == ["bold"]
    browser.ask("Again")
    assert [message["role"] for message in script.requests[1]["messages"]] == ["user", "assistant", "user"]


def test_stop_keeps_the_text_and_ends_the_request(browser: Browser, script: Script):
    script.replies, script.pause = [["word "] * 500], 0.02
    browser.ready()
    browser.send("Count")
    wait(lambda: "word word" in (browser.texts(".reply .body") or [""])[0])
    browser.find("#input").send_keys(Keys.ESCAPE)
    wait(browser.idle)
    wait(lambda: script.left == 1)
    assert browser.texts(".meta") == ["stopped"]
    script.pause, script.replies = 0.0, [["and the end."]]
    text = browser.texts(".reply .body")[0]
    browser.button("Continue")
    wait(lambda: browser.texts(".reply .body")[0].endswith("and the end."))
    last = script.requests[1]["messages"][-1]
    assert last["role"] == "assistant"
    assert last["content"].strip() == text.strip()


def test_regenerate_edit_and_branches(browser: Browser, script: Script):
    script.replies = [["First."], ["Second."], ["Third."]]
    browser.ready()
    browser.ask("Question")
    browser.button("Regenerate")
    wait(lambda: browser.texts(".reply .body") == ["Second."])
    browser.button("Edit and send again")
    browser.find(".edit textarea").send_keys(" two", Keys.ENTER)
    wait(lambda: browser.texts(".reply .body") == ["Third."])
    assert script.requests[2]["messages"] == [{"role": "user", "content": "Question two"}]
    assert browser.texts(".branches span") == ["2 / 2"]
    browser.button("Previous branch")
    wait(lambda: browser.texts(".reply .body") == ["Second."])
    assert browser.texts(".branches span") == ["1 / 2", "2 / 2"]
    browser.button("Previous branch", ".reply")
    wait(lambda: browser.texts(".reply .body") == ["First."])
    assert browser.run("return document.activeElement.getAttribute('aria-label')") == "Next branch"
    browser.driver.refresh()
    wait(lambda: browser.texts(".reply .body") == ["First."])


ATTACKS = [
    "<script>pwned = 1</script>",
    "<img src=x onerror='pwned = 1'>",
    "![x](http://127.0.0.1:9/a.png)",
    "[x](javascript:pwned=1) [y](data:text/html,<script>pwned=1</script>) [z](vbscript:x)",
    "<svg><style><img src=x onerror=pwned=1></style></svg>",
    "```<img src=x onerror=pwned=1>\n<script>pwned = 1</script>\n```",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe><form action=/x><input name=body></form>",
    "| <b onmouseover=pwned=1>a</b> |\n|-|\n| <math><mtext><img src=x onerror=pwned=1> |",
    '[a]: http://x/"onmouseover=pwned=1 \'x\'\n\n[a] [b](<http://x/" onmouseover="pwned=1>)',
    '<a href="#x" id="input" name="input">clobber</a> <base href="http://127.0.0.1:9/">',
]


def test_text_of_a_model_runs_nothing_and_loads_nothing(browser: Browser, script: Script):
    script.replies = [list(attack) for attack in ATTACKS]
    browser.ready()
    for attack in ATTACKS:
        browser.ask(attack)
    browser.run("document.querySelectorAll('.body *').forEach(e => e.dispatchEvent(new Event('mouseover')))")
    assert browser.run("return window.pwned") is None
    found = "return [...document.querySelectorAll('.body *')].map(e => e.localName)"
    allowed = {
        "div",
        "p",
        "a",
        "pre",
        "code",
        "button",
        "svg",
        "use",
        "span",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    assert set(browser.run(found)) <= allowed
    attributes = (
        "return [...document.querySelectorAll('.body :not(button, svg, use)')].flatMap(e => e.getAttributeNames())"
    )
    names = {"class", "tabindex", "role", "aria-label", "href", "title", "target", "rel"}
    assert set(browser.run(attributes)) <= names
    links = browser.run("return [...document.querySelectorAll('.body a')].map(e => e.getAttribute('href'))")
    assert all(link is None or link.startswith(("http:", "https:")) for link in links)
    loaded = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith(browser.address) for name in loaded)


def test_the_policy_refuses_inline_script_and_html(browser: Browser):
    browser.ready()
    refused = "try { document.body.innerHTML = '<b>x</b>'; return false } catch (e) { return e instanceof TypeError }"
    assert browser.run(refused)
    browser.run("const s = document.createElement('div');"
                "try { s.setAttribute('onclick', 'window.pwned = 1') } catch {}"
                "document.body.append(s); s.click()")  # fmt: skip
    assert browser.run("return window.pwned") is None
    assert len(browser.errors()) == 2  # the refusals


def test_system_prompt_and_sampling(browser: Browser, script: Script):
    browser.ready()
    browser.click("#open-settings")
    wait(lambda: browser.find("#settings").is_displayed())
    assert browser.find("#set-temperature").get_attribute("placeholder") == "1"
    assert browser.find("#set-top_k").get_attribute("placeholder") == "64"
    browser.type("#system", "Be brief.")
    browser.type("#set-temperature", "0.5")
    browser.type("#set-top_k", "7")
    browser.type("#set-seed", "3")
    browser.type("#set-stop", "END\n###")
    browser.type("#set-top_p", "5")  # out of range
    browser.find("#settings").send_keys(Keys.ESCAPE)
    browser.ask("Hi")
    request = script.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {name: request.get(name) for name in ("temperature", "top_k", "seed", "stop", "top_p")} == {
        "temperature": 0.5, "top_k": 7, "seed": 3, "stop": ["END", "###"], "top_p": None,
    }  # fmt: skip
    browser.click("#open-settings")
    browser.button("Use the model's defaults", "#settings")
    browser.find("#settings").send_keys(Keys.ESCAPE)
    browser.ask("Hi")
    assert not {"temperature", "top_k", "seed", "stop"} & script.requests[1].keys()


DROP = """
    const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "dot.png", { type: "image/png" }));
    const event = arguments[1] === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
    document.getElementById("input").dispatchEvent(event);
"""


def test_images_by_file_drop_and_paste(browser: Browser, script: Script, tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (3000, 200), "red").save(tmp_path / "wide.png")
    (tmp_path / "not.png").write_bytes(b"no image")
    script.models = {"gemma-3-4b-it": {"images": True}}
    browser.ready()
    browser.find("#attach-file").send_keys(str(tmp_path / "wide.png"))
    wait(lambda: len(browser.all("#attachments img")) == 1)
    for count, kind in ((2, "drop"), (3, "paste")):
        browser.run(DROP, PIXEL, kind)
        wait(lambda count=count: len(browser.all("#attachments img")) == count)
    browser.button("Remove image 3")
    browser.find("#attach-file").send_keys(str(tmp_path / "not.png"))
    wait(lambda: "not.png" in browser.texts("#banner")[0])
    browser.ask("What is this?")
    parts = script.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert parts[1]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
    size = browser.run("const i = document.querySelector('.images img'); return [i.naturalWidth, i.naturalHeight]")
    assert size == [2048, 137]


def test_a_model_without_images_takes_none(browser: Browser, script: Script):
    browser.ready()
    assert not browser.find("#attach").is_displayed()
    browser.run(DROP, PIXEL, "drop")
    wait(lambda: "does not accept images" in browser.texts("#banner")[0])


def test_boxes_are_drawn_where_the_tags_say(browser: Browser, script: Script, tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (400, 200), "white").save(tmp_path / "image.png")
    script.models = {"paligemma": {"images": True, "single_turn": True, "tuned": False}}
    script.replies = [["<loc0256><loc0512>", "<loc0768><loc1023> cat", " ; <loc0000><loc0000><loc0100><loc0100> dog"]]
    browser.ready()
    browser.find("#attach-file").send_keys(str(tmp_path / "image.png"))
    wait(lambda: browser.all("#attachments img"))
    browser.ask("detect cat ; dog")
    wait(lambda: len(browser.all(".overlay rect")) == 2)
    assert browser.texts(".objects li") == ["cat", "dog"]
    image, box = (browser.all(selector)[0].rect for selector in (".overlay img", ".overlay rect"))
    assert (box["x"] - image["x"]) / image["width"] == pytest.approx(512 / 1023, abs=0.01)
    assert (box["y"] - image["y"]) / image["height"] == pytest.approx(256 / 1023, abs=0.02)
    assert box["height"] / image["height"] == pytest.approx(512 / 1023, abs=0.03)
    browser.ask("caption en")  # the next task is about the same image, without the first
    (message,) = script.requests[1]["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]


def test_fill_in_the_middle(browser: Browser, script: Script):
    script.models = {"codegemma-2b": {"infill": True}}
    script.replies = [["    return", " a + b\n"]]
    browser.ready()
    browser.click("#complete-tab")
    browser.find("#before").send_keys("def add(a, b):\n")
    browser.find("#after").send_keys("\nprint(add(1, 2))", Keys.CONTROL, Keys.ENTER)
    wait(lambda: browser.find("#accept").is_displayed() and browser.find("#accept").is_enabled())
    assert script.requests[0]["prompt"] == "def add(a, b):\n"
    assert script.requests[0]["suffix"] == "\nprint(add(1, 2))"
    browser.click("#accept")
    assert browser.run("return document.getElementById('before').value") == "def add(a, b):\n    return a + b\n"


def test_a_model_without_gaps_completes_texts(browser: Browser, script: Script):
    script.models = {"gemma-3-270m": {"tuned": False}}
    script.replies = [["upon", " a time"]]
    browser.ready()
    assert "not tuned for conversations" in browser.texts("#welcome")[0]
    browser.click("#welcome a")
    assert not browser.find("#after").is_displayed()
    browser.find("#before").send_keys("Once ")
    browser.click("#run-complete")
    wait(lambda: browser.texts("#result") == ["upon a time"])
    assert "suffix" not in script.requests[0]


def test_token_probabilities(browser: Browser, script: Script):
    script.replies = [["The", " cat"]]
    browser.ready()
    browser.click("#open-settings")
    browser.click("#logprobs")
    browser.find("#settings").send_keys(Keys.ESCAPE)
    browser.ask("Hi")
    assert script.requests[0]["logprobs"] is True
    browser.button("Token probabilities")
    assert browser.texts(".token") == ["The", " cat"]
    browser.find(".tokens").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    tip = browser.texts("#tip")[0]
    assert "␣cat" in tip
    assert "37%" in tip  # exp(-1)
    assert "22%" in tip  # exp(-1.5)
    assert browser.texts("#announce") == ["␣cat, 37%"]


def test_rename_delete_export_and_import(browser: Browser, script: Script):
    script.replies = [["One."], ["Two."]]
    browser.ready()
    browser.ask("First")
    browser.click("#new")
    browser.ask("Second")
    assert browser.texts("#conversations a") == ["Second", "First"]
    browser.button("Rename First")
    browser.find("#conversations input").send_keys("Renamed", Keys.ENTER)
    wait(lambda: browser.texts("#conversations a") == ["Second", "Renamed"])
    browser.click("#export-all")
    exported = browser.folder / "gemwright-conversations.json"
    wait(exported.exists)
    assert len(wait(lambda: json.loads(exported.read_text() or "0"))["conversations"]) == 2
    browser.button("Delete Renamed")
    browser.click("#confirm-ok")
    wait(lambda: browser.texts("#conversations a") == ["Second"])
    browser.find("#import-file").send_keys(str(exported))
    wait(lambda: sorted(browser.texts("#conversations a")) == ["Renamed", "Second", "Second"])
    browser.driver.refresh()
    wait(lambda: len(browser.texts("#conversations a")) == 3)
    browser.run("[...document.querySelectorAll('#conversations a')].find(e => e.innerText === 'Renamed').click()")
    wait(lambda: browser.texts(".bubble, .reply .body") == ["First", "One."])


A, B = "a" * 24, "b" * 24
HOSTILE: list[Any] = [
    "not json",
    {"format": "other"},
    {"format": "gemwright-conversations-1", "conversations": {}},
]


@pytest.mark.parametrize("content", HOSTILE)
def test_a_file_of_another_kind_is_refused(browser: Browser, content: Any, tmp_path: Path):
    path = tmp_path / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    browser.ready()
    browser.find("#import-file").send_keys(str(path))
    wait(lambda: "choose a file that this page has exported" in browser.texts("#banner")[0])


def test_a_hostile_import_is_harmless(browser: Browser, tmp_path: Path):
    nodes = {
        A: {
            "parent": B,
            "role": "system",
            "text": "<img src=x onerror=pwned=1>",
            "images": ["http://127.0.0.1:9/x", 3],
        },
        B: {"parent": A, "role": "assistant", "text": ["x"], "usage": "many", "error": {"kind": "x"}},
        "__proto__": {"role": "user"},
        "constructor": {"parent": "constructor"},
    }
    conversations: list[Any] = [
        {"nodes": nodes, "leaf": "constructor", "title": 5}, None, 7, {"nodes": {A: None}, "leaf": A},
    ]  # fmt: skip
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"format": "gemwright-conversations-1", "conversations": conversations}))
    browser.ready()
    browser.find("#import-file").send_keys(str(path))
    wait(lambda: len(browser.all("#conversations a")) == 4)
    for link in range(4):
        browser.run("document.querySelectorAll('#conversations a')[arguments[0]].click()", link)
        wait(lambda: browser.find("#transcript"))
    assert browser.run("return window.pwned") is None
    assert not browser.all(".images img")


def test_a_key_is_asked_for_and_sent(browser: Browser, script: Script):
    script.key = "secret"
    browser.open()
    wait(lambda: browser.find("#key-dialog").is_displayed())
    browser.find("#key").send_keys("wrong", Keys.ENTER)
    wait(lambda: browser.find("#key-dialog").is_displayed() and browser.find("#key").get_attribute("value") == "")
    browser.find("#key").send_keys("secret", Keys.ENTER)
    wait(lambda: "·" in browser.driver.title)
    browser.ask("Hi")
    assert browser.run("return localStorage.length + '|' + sessionStorage.getItem('gemwright.key')") == "0|secret"


def test_errors_say_what_to_do(browser: Browser, script: Script):
    script.replies = [
        error(429, "The queue is full: 64 requests wait.", Retry_After="7"),
        error(503, "The model is being loaded.", Retry_After="1"),
        ["Here."],
        error(400, "The prompt has 9,000 tokens; the context has 8,192.", X="y"),
    ]
    browser.ready()
    browser.ask("Hi")
    assert "queue is full" in browser.texts(".error")[0]
    assert "Try again in 7 s" in browser.texts(".error")[0]
    browser.button("Try again")
    wait(lambda: browser.texts(".waiting") == ["The model is being loaded."])
    wait(lambda: browser.texts(".reply .body") == ["Here."])  # without another click
    browser.ask("Long")
    assert "9,000 tokens" in browser.texts(".error")[0]


def test_a_lost_connection_keeps_what_has_come(browser: Browser, script: Script):
    script.replies, script.cut = [["One", " two", " three", " four", " five", " six"]], True
    browser.ready()
    browser.ask("Count")
    assert browser.texts(".error strong") == ["The connection was lost"]
    assert browser.texts(".reply .body") == ["One two three"]


def test_a_server_that_has_gone_is_found_again(browser: Browser, script: Script):
    browser.ready()
    browser.run(
        "const real = fetch; window.gone = true;"
        "window.fetch = (...a) => { if (window.gone) throw new TypeError('x'); return real(...a) };"
    )
    browser.ask("Hi")
    assert browser.texts(".error strong") == ["The server does not answer"]
    wait(lambda: "Check that gemwright serve is running" in browser.texts("#banner")[0])
    browser.run("window.gone = false")
    wait(lambda: not browser.find("#banner").is_displayed())
    browser.button("Try again")
    wait(lambda: browser.texts(".reply .body") == ["Fine."])


def test_a_model_is_chosen(browser: Browser, script: Script):
    script.models = {"one": {}, "two": {"images": True}}
    browser.ready()
    browser.choose("#model", "two")
    wait(lambda: browser.driver.title.startswith("two"))
    browser.ask("Hi")
    assert script.requests[0]["model"] == "two"
    browser.driver.refresh()
    wait(lambda: browser.driver.title.startswith("two"))


def test_a_conversation_goes_on_while_another_is_read(browser: Browser, script: Script):
    script.replies, script.pause = [["slow "] * 40], 0.03
    browser.ready()
    browser.send("First")
    wait(lambda: browser.texts(".reply .body"))
    browser.click("#new")
    wait(lambda: browser.idle() and not browser.all(".reply"))
    browser.run("document.querySelector('#conversations a').click()")
    wait(lambda: browser.texts(".reply .body") == [("slow " * 40).strip()])


def test_the_keyboard_is_enough(browser: Browser, script: Script):
    browser.ready()
    browser.find("body").send_keys(Keys.TAB)
    assert browser.run("return document.activeElement.innerText") == "Skip to the message"
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "input"
    browser.ask("Hi")
    browser.find("#input").send_keys(Keys.ALT, "n")
    wait(lambda: not browser.all(".reply"))


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_pages_do_not_scroll_sideways(browser: Browser, script: Script, width: int):
    script.replies = [
        ["```\n" + "x" * 300 + "\n```\n\n" + "y" * 300 + "\n\n| " + "z" * 300 + " | b |\n|-|-|\n| 1 | 2 |"]
    ]
    browser.view(width, 700)
    browser.ready()
    browser.ask("w" * 200)
    for selector in ("html", "#scroll", "#page"):
        sizes = browser.run(
            "const e = document.querySelector(arguments[0]); return [e.scrollWidth, e.clientWidth]", selector
        )
        assert sizes[0] <= sizes[1], selector
    if width < 768:
        assert not browser.find("#conversations").is_displayed()
        browser.click("#open-sidebar")
        assert browser.find("#conversations a").is_displayed()
        browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        assert browser.run("return document.activeElement.id") == "open-sidebar"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, script: Script, scheme: str, tmp_path: Path):
    axe = Path(pytest.importorskip("axe_core_python").__file__ or "").with_name("axe.min.js").read_text()

    def check(state: str) -> None:
        browser.run(f"if (!window.axe) {{ {axe} }}")
        rules = "{ 'color-contrast-enhanced': { enabled: false } }"
        found = browser.driver.execute_async_script(
            f"axe.run(document, {{ rules: {rules} }}).then(r => arguments[0](r.violations.map("
            "v => v.id + ': ' + v.nodes.map(n => n.html).join(' '))))"
        )
        assert found == [], state

    script.models = {"one": {"images": True, "infill": True, "tuned": False}, "two": {}}
    script.replies = [
        ["# Title\n\nText with `code` and [a link](https://example.org).\n\n",
         "```python\nx = 1\n```\n\n- [x] done\n\n", "| a | b |\n|-|-|\n| 1 | 2 |\n\n> quoted"],
        error(429, "The queue is full."), ["a", " b"],
    ]  # fmt: skip
    browser.view(1200, 800, scheme)
    browser.ready()
    check("welcome")
    browser.click("#open-settings")
    browser.click("#logprobs")
    check("settings")
    browser.find("#settings").send_keys(Keys.ESCAPE)
    browser.ask("Hello")
    browser.ask("Again")
    check("chat with an error")
    browser.run("document.querySelector('[aria-label=\"Token probabilities\"]').click()")
    check("tokens")
    browser.click("#complete-tab")
    browser.find("#before").send_keys("x")
    browser.click("#run-complete")
    wait(lambda: browser.find("#accept").is_enabled())
    check("complete")
    browser.view(390, 800, scheme)
    browser.click("#open-sidebar")
    check("phone")
