"""The dashboard in a real browser: each view with real streams, by mouse, by keyboard, small."""

from __future__ import annotations

import signal
from typing import Any

from tests.browser.stage import HOSTILE, Stage
from tests.cli.processes import LONG

TOPIC = "sensors/kitchen/temp"


def wait(page: Any, script: str, argument: Any = None) -> None:
    """Until it is so in the page."""
    page.wait_for_function(script, arg=argument, timeout=LONG * 1000)


def row(page: Any, text: str) -> Any:
    return page.locator(".line", has_text=text).first


CURVE = """() => {
  const line = document.querySelector(".line polyline");
  return line && line.getAttribute("points").split(" ").length > 3;
}"""


def test_topics_flow_and_the_token_is_not_in_the_address(stage: Stage, page: Any) -> None:
    stage.sensors()
    stage.consumer("sensors/**", "store.py")
    stage.open(page)
    assert "token" not in page.url
    row(page, TOPIC).wait_for()
    wait(page, "() => document.querySelector('#state').textContent === 'Nothing is wrong.'")
    cells = row(page, TOPIC).locator("[role=cell]").all_inner_texts()
    assert cells[4:6] == ["1", "1"]
    wait(page, "() => Number(document.querySelector('#tiles dd').textContent.replace(',', '')) > 9")
    wait(page, CURVE)


def test_hostile_names_and_values_are_text(stage: Stage, page: Any) -> None:
    stage.sensors()
    stage.open(page)
    name = f"hostile/{HOSTILE}"
    row(page, name).locator("a").click()
    page.locator("h2", has_text=name).wait_for()
    page.get_by_text("Peek at messages").click()
    message = page.locator(".messages code").first
    message.wait_for()
    assert HOSTILE in message.inner_text()
    assert "\\u202e" in message.inner_text()
    assert page.locator("main img").count() == 0
    page.get_by_text("Stop", exact=True).click()


def test_a_fault_appears_where_it_is_and_goes(stage: Stage, page: Any) -> None:
    stage.sensors()
    consumer = stage.consumer(TOPIC, "model.py")
    stage.open(page)
    row(page, TOPIC).wait_for()
    consumer.send("0.5\n")
    page.locator("#state .wrong", has_text="model.py").wait_for()
    wait(page, "topic => document.querySelector('.line').textContent.includes(topic)", TOPIC)
    assert row(page, TOPIC).get_attribute("data-health") == "bad"  # and above all others
    stage.go(page, "#/graph")
    page.locator('.graph path[data-health="bad"]').wait_for(state="attached")
    stage.go(page, f"#/topic/{TOPIC.replace('/', '%2F')}")
    page.locator("main .wrong", has_text="model.py").first.wait_for()
    stream = row(page, "model.py")
    stream.wait_for()
    assert stream.get_attribute("data-health") == "bad"
    stage.go(page, "#/")
    consumer.send("0\n")
    wait(page, "() => document.querySelector('#state').textContent === 'Nothing is wrong.'")


def test_a_process_that_is_stopped_is_named_and_when_it_goes_on_that_it_was(
    stage: Stage, page: Any
) -> None:
    stage.sensors()
    consumer = stage.consumer(TOPIC, "model.py")
    stage.open(page, "#/processes")
    row(page, "model.py").wait_for()
    consumer.signal(signal.SIGSTOP)
    page.locator("#state .wrong", has_text="model.py").wait_for()
    wait(
        page,
        "() => [...document.querySelectorAll('.line')].some((line) =>"
        " line.textContent.includes('model.py') && line.dataset.health === 'bad')",
    )
    consumer.signal(signal.SIGCONT)
    # That its loop did not run is said for a minute; no other thing is.
    said = """() => {
      const list = [...document.querySelectorAll("#state .wrong li")];
      return list.length === 1 && list[0].textContent.includes("was blocked");
    }"""
    wait(page, said)


def test_a_process_has_a_page_from_each_place_that_names_it(stage: Stage, page: Any) -> None:
    stage.sensors()
    stage.consumer("sensors/*/temp", "store.py")
    stage.open(page, "#/processes")
    page.locator("h3", has_text="Coordinators").wait_for()
    assert stage.coordinator in page.locator("main").inner_text()
    row(page, "store.py").locator("a").click()
    page.locator("h2", has_text="store.py").wait_for()
    page.locator(".line", has_text="sensors/*/temp").wait_for()
    page.locator("h3", has_text="Links").wait_for()
    page.locator(".line", has_text="publisher").locator("a").first.click()
    page.locator("h2", has_text="sensors.py").wait_for()
    stage.go(page, "#/graph")
    page.locator(".graph a", has_text="store.py").click()
    page.locator("h2", has_text="store.py").wait_for()


def test_a_reload_shows_the_same_with_its_curve(stage: Stage, page: Any) -> None:
    stage.sensors()
    stage.open(page)
    row(page, TOPIC).wait_for()
    wait(page, CURVE)
    page.reload()
    row(page, TOPIC).wait_for()
    wait(page, CURVE)


def test_two_viewers_look_at_different_things(stage: Stage, page: Any, browser: Any) -> None:
    stage.sensors()
    stage.open(page)
    other = browser.new_page()
    try:
        stage.open(other, "#/processes")
        row(other, "sensors.py").wait_for()
        row(page, TOPIC).wait_for()
        other.goto("about:blank")
        before = page.evaluate("() => document.querySelector('#tiles dd').textContent")
        wait(page, "old => document.querySelector('#tiles dd').textContent !== old", before)
    finally:
        other.close()


def test_all_of_it_works_by_keyboard(stage: Stage, page: Any) -> None:
    stage.sensors()
    stage.consumer(TOPIC, "store.py")
    stage.open(page)
    row(page, TOPIC).wait_for()
    page.keyboard.press("/")
    page.keyboard.type("kitchen")
    wait(page, "() => document.querySelector('.table').getAttribute('aria-rowcount') === '2'")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.locator(".line.chosen", has_text=TOPIC).wait_for()
    page.keyboard.press("Enter")
    page.locator("h2", has_text=TOPIC).wait_for()
    page.keyboard.press("Escape")
    wait(page, "() => location.hash === '#/'")
    page.keyboard.press("2")
    row(page, "sensors.py")
    page.keyboard.press("3")
    page.locator(".graph").wait_for()
    page.keyboard.press("?")
    page.locator("#help[open]").wait_for()
    page.keyboard.press("Escape")
    page.locator("#help[open]").wait_for(state="detached")
    page.keyboard.press("p")
    page.locator("#live[data-state=paused]").wait_for()
    page.keyboard.press("p")
    page.locator("#live[data-state=live]").wait_for()


def test_rows_are_sorted_by_what_is_clicked(stage: Stage, page: Any) -> None:
    stage.sensors()
    stage.open(page)
    row(page, TOPIC).wait_for()
    page.get_by_role("button", name="Topic", exact=True).click()
    page.get_by_role("button", name="Topic", exact=True).click()
    first = page.locator('.line[aria-rowindex="2"]')
    wait(
        page,
        "topic => document.querySelector('.line[aria-rowindex=\"2\"]').dataset.key === topic",
        TOPIC,
    )
    assert TOPIC in first.inner_text()
    assert page.locator('[aria-sort="descending"]').inner_text() == "Topic"


def test_it_fits_a_phone_in_the_dark(stage: Stage, page: Any) -> None:
    stage.sensors()
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    stage.open(page)
    row(page, TOPIC).wait_for()
    for view in ("#/", "#/processes", f"#/topic/{TOPIC.replace('/', '%2F')}", "#/graph"):
        stage.go(page, view)
        page.locator(".table, .graph").first.wait_for()
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), view
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(18, 22, 29)"


def test_where_the_dashboard_is_gone_the_page_says_so_and_comes_back(
    stage: Stage, browser: Any
) -> None:
    page = browser.new_page()  # for which what goes wrong is no failure
    try:
        stage.open(page)
        page.route("**/events?*", lambda route: route.abort())
        stage.go(page, "#/processes")
        page.locator("#live[data-state=lost]").wait_for()
        page.unroute("**/events?*")
        page.locator("#live[data-state=live]").wait_for()
        browser.clear_cookies()
        stage.go(page, "#/")
        page.get_by_text("open the link").wait_for()
    finally:
        page.close()


def test_a_page_of_another_origin_gets_nothing(stage: Stage, browser: Any) -> None:
    """Of another port of the same address, which browsers take for the same site: even one that
    knows the place."""
    page = browser.new_page()
    try:
        stage.open(page)
        place = page.url.split("#")[0]
        stranger = browser.new_page()
        stranger.route("http://127.0.0.1:9/**", lambda route: route.fulfill(body="<p>stranger"))
        stranger.goto("http://127.0.0.1:9/")
        got = stranger.evaluate(
            """async (place) => {
              const found = [];
              for (const path of ["app.js", "events?page=topics", ""]) {
                const options = { credentials: "include", mode: "no-cors" };
                try { found.push((await fetch(place + path, options)).type); }
                catch { found.push("refused"); }
                try { await fetch(place + path, { credentials: "include" }); found.push("read"); }
                catch { found.push("refused"); }
              }
              const source = new EventSource(place + "events", { withCredentials: true });
              found.push(await new Promise((told) => {
                source.onopen = () => told("open");
                source.onerror = () => told("refused");
              }));
              return found;
            }""",
            place,
        )
        assert set(got) == {"refused"}
        stranger.close()
    finally:
        page.close()


def test_of_a_crowd_only_what_is_seen_is_drawn(stage: Stage, page: Any) -> None:
    process = stage.start("python", "-m", "tests.browser.crowded", "1000", "300")
    page.goto(process.out())
    page.locator(".line").first.wait_for()
    wait(page, "() => document.querySelector('.table').getAttribute('aria-rowcount') === '1001'")
    assert page.locator(".line").count() < 60
    page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
    page.locator('.line[aria-rowindex="1001"]').wait_for()
    page.keyboard.press("3")
    wait(page, "() => document.querySelectorAll('.graph a').length === 300")
