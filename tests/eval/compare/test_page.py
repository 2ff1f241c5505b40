"""The page on which a person judges: its session, its server, and itself in a real Chromium."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gemwright.eval.compare.page import PERSON, PageServer, Session, draw
from gemwright.eval.compare.pairs import Pair, Shown, find_outcome
from gemwright.eval.compare.prompts import Prompt
from gemwright.eval.store import Records
from tests.serve.browser import CHROMIUM, DRIVER, Browser, wait

ATTACK = "<script>pwned = 1</script><img src=x onerror='pwned = 1'>\n**bold** \u202e&amp; </textarea>"


def make_pairs(count: int) -> list[Pair]:
    return [
        Pair(
            Prompt(str(number), (f"Question {number}", "And then?")),
            Shown("secret-one", (f"one {number}", ATTACK)),
            Shown("secret-two", (f"two {number}", "")),
        )
        for number in range(count)
    ]


PAIRS = make_pairs(5)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with Records(tmp_path / "judgements.jsonl") as opened:
        yield opened


@pytest.fixture
def session(records: Records) -> Session:
    return Session(PAIRS, records, lambda *_: None)


@pytest.fixture
def server(session: Session) -> Iterator[PageServer]:
    with PageServer(session) as started:
        yield started


def scores(records: Records, pairs: list[Pair] = PAIRS) -> list[float | None]:
    return [find_outcome(pair, PERSON, records.by_key).score for pair in pairs]


def choose_first(state: dict[str, Any]) -> str:
    """Return where the answer of the first candidate is."""
    return "left" if state["turns"][0]["left"].startswith("one") else "right"


def is_done(session: Session) -> bool:
    session.finish_if_done()
    return session.finished.is_set()


def judge(session: Session, verdict: str, tab: str = "a") -> dict[str, Any]:
    state = session.show(tab)
    found = session.judge(tab, state["pair"], choose_first(state) if verdict == "first" else verdict)
    assert found
    return found


def test_a_person_judges_all_pairs(session: Session, records: Records):
    for _ in range(5):
        assert not is_done(session)
        judge(session, "first")
    assert is_done(session)
    assert session.show("a")["pair"] is None
    assert scores(records) == [1.0] * 5


def test_a_session_continues_where_it_was(session: Session, records: Records):
    judge(session, "first")
    judge(session, "tie")
    before = session.show("a")
    again = Session(PAIRS, records, lambda *_: None)
    assert again.show("b") == before | {"can_undo": False}
    assert before["judged"] == 2


def test_verdicts_count_for_candidates_in_another_order(session: Session, records: Records):
    judge(session, "first")
    swapped = [Pair(pair.prompt, pair.second, pair.first) for pair in PAIRS]
    assert Counter(scores(records, swapped)) == {0.0: 1, None: 4}
    assert Session(swapped, records, lambda *_: None).show("a")["judged"] == 1


def test_skipped_pairs_come_at_the_end(session: Session):
    skipped = session.show("a")["pair"]
    seen = [judge(session, "skip")["pair"]] + [judge(session, "tie")["pair"] for _ in range(4)]
    assert seen[-1] == skipped
    assert judge(session, "skip")["pair"] == skipped
    assert judge(session, "tie")["pair"] is None


def test_a_verdict_that_was_taken_back_can_be_given_in_another_order(session: Session, records: Records):
    judge(session, "first")
    session.undo("a")
    swapped = [Pair(pair.prompt, pair.second, pair.first) for pair in PAIRS]
    again = Session(swapped, records, lambda *_: None)
    for _ in range(5):
        judge(again, "tie")
    assert scores(records) == [0.5] * 5


def test_undo_shows_the_pair_again(session: Session, records: Records):
    first = session.show("a")["pair"]
    assert session.undo("a")["pair"] == first
    judge(session, "first")
    state = session.undo("a")
    assert (state["pair"], state["judged"], state["can_undo"]) == (first, 0, False)
    assert scores(records) == [None] * 5
    session.judge("a", first, "tie")
    assert Counter(scores(records)) == {0.5: 1, None: 4}


def test_two_tabs_have_different_pairs_and_one_verdict_counts(session: Session, records: Records):
    one, other = session.show("a"), session.show("b")
    assert one["pair"] != other["pair"]
    assert session.judge("a", one["pair"], "tie")
    assert session.judge("b", one["pair"], "left") is None
    assert Counter(scores(records)) == {0.5: 1, None: 4}
    while (state := session.show("a"))["pair"] != other["pair"]:
        session.judge("a", state["pair"], "tie")  # the pair of the closed tab is the last
    session.judge("a", state["pair"], "tie")
    assert is_done(session)


def test_equal_answers_are_not_shown(records: Records):
    pair = Pair(Prompt("1", ("Who?",)), Shown("one", ("same",)), Shown("two", ("same",)))
    assert Session([pair], records, lambda *_: None).finished.is_set()
    assert scores(records, [pair]) == [0.5]


def test_sides_are_balanced_and_drawn():
    places = draw(make_pairs(101), random.Random(0))
    assert sum(place.is_swapped for place in places) in (50, 51)
    assert [place.pair.prompt.name for place in places] != [str(number) for number in range(101)]
    assert places == draw(make_pairs(101), random.Random(0))
    assert len({place.is_swapped for place in places[:10]}) == 2


def post(server: PageServer, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(server.address + path, json=body, headers=headers)


def test_names_are_never_sent(server: PageServer, session: Session):
    state = post(server, "next", {"tab": "a"}).json()
    assert set(state) == {"pair", "judged", "total", "can_undo", "turns"}
    text = "".join(post(server, "judge", {"tab": "a", "pair": number, "verdict": "tie"}).text for number in range(5))
    assert "secret" not in text
    assert is_done(session)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("", {"Host": "evil.example"}, 403),
        ("", {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("", {"Host": "localhost:8000"}, 200),
        ("", {"Origin": "http://evil.example"}, 403),
        ("", {"Origin": "null"}, 403),
        ("../", {}, 404),
        ("page.py", {}, 404),
        ("../../../../etc/passwd", {}, 404),
    ],
)
def test_only_the_page_itself_has_access(path: str, headers: dict[str, str], status: int, server: PageServer):
    found = httpx.get(server.address + path, headers=headers)
    assert found.status_code == status
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert httpx.get(re.sub(r"/[^/]+/$", "/", server.address)).status_code == 404  # without the secret


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("next", b"{}"),
        ("next", b"[]"),
        ("next", b"{"),
        ("next", b'{"tab": "' + b"a" * 5000 + b'"}'),
        ("next", b"[" * 4000),
        ("judge", b'{"tab": "a", "pair": 0, "verdict": "both"}'),
        ("judge", b'{"tab": "a", "pair": "0", "verdict": "tie"}'),
        ("other", b'{"tab": "a"}'),
    ],
)
def test_other_requests_are_refused(path: str, content: bytes, server: PageServer, records: Records):
    found = httpx.post(server.address + path, content=content, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    plain = httpx.post(server.address + "next", content=b'{"tab": "a"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400  # a form of another site can send this one
    assert records.by_key == {}


def test_a_pair_of_another_tab_conflicts(server: PageServer):
    number = post(server, "next", {"tab": "a"}).json()["pair"]
    for status in (200, 409):
        assert post(server, "judge", {"tab": "a", "pair": number, "verdict": "tie"}).status_code == status
    assert post(server, "judge", {"tab": "a", "pair": 99, "verdict": "tie"}).status_code == 409


needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture
def browser(server: PageServer, tmp_path: Path) -> Iterator[Browser]:
    started = Browser(server.address.rstrip("/"), tmp_path)
    yield started
    assert started.errors() == []
    started.driver.quit()


def press(browser: Browser, key: str) -> None:
    before = browser.texts("#count, #pair, #message")
    browser.find("body").send_keys(key)
    wait(lambda: browser.texts("#count, #pair, #message") != before)


@needs_browser
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_in_a_browser(browser: Browser, records: Records):
    """One test, as starting a browser takes seconds: keys, escaping, widths, both themes, and axe."""
    from selenium.webdriver.common.keys import Keys

    pytest.importorskip("axe_core_python")
    browser.open()
    wait(lambda: browser.all(".turn"))
    assert browser.texts("#count") == ["0 of 5 judged"]
    texts = browser.run("return [...document.querySelectorAll('.answer .text')].map(e => e.textContent)")
    assert ATTACK in texts
    assert "Empty" in texts
    assert browser.run("return window.pwned") is None
    assert browser.all(".text *") == []
    check_axe(browser)
    browser.view(390, 800, "dark")
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    check_axe(browser)
    first = choose_first({"turns": [{"left": texts[0]}]})
    press(browser, {"left": Keys.ARROW_LEFT, "right": "2"}[first])
    press(browser, "t")
    press(browser, "s")
    browser.find("body").send_keys(Keys.CONTROL, "t")
    assert browser.texts("#count") == ["2 of 5 judged"]
    assert Counter(scores(records)) == {1.0: 1, 0.5: 1, None: 3}
    press(browser, Keys.BACKSPACE)
    press(browser, "t")
    browser.driver.refresh()
    wait(lambda: browser.texts("#count") == ["2 of 5 judged"])
    for _ in range(3):
        wait(lambda: browser.find("#tie").is_enabled())
        press(browser, "t")
    assert browser.texts("#end h2") == ["All pairs are judged"]
    check_axe(browser)
    assert None not in scores(records)


def check_axe(browser: Browser) -> None:
    import axe_core_python

    axe = Path(axe_core_python.__file__ or "").with_name("axe.min.js").read_text()
    browser.run(f"if (!window.axe) {{ {axe} }}")
    found = browser.driver.execute_async_script(
        "axe.run(document).then(r => arguments[0](r.violations.map("
        "v => v.id + ': ' + v.nodes.map(n => n.html).join(' '))))"
    )
    assert found == []
