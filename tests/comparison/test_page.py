"""The page in a real browser: it works from disk, without an error and without a request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("selenium")
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1600"""

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for switch in (*SWITCHES.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def open_page(browser: Chrome, out: Path, state: str = "") -> None:
    browser.get("about:blank")  # a change of the hash alone loads nothing
    browser.get(f"{(out / 'index.html').as_uri()}{state}")


def shown(browser: Chrome) -> list[dict]:
    """Return the instances that a reader sees, in order."""
    rows = [row for row in browser.find_elements(By.CSS_SELECTOR, ".instance") if row.is_displayed()]
    return [{"size": r.get_attribute("data-size"), "ious": json.loads(r.get_attribute("data-ious"))} for r in rows]


@contextmanager
def as_seen_by(browser: Chrome, *, width: int = 1280, scheme: str = "light") -> Iterator[None]:
    """Show pages in a window of that width, to a reader of that colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def style_of(browser: Chrome, selector: str, name: str) -> str:
    element = browser.find_element(By.CSS_SELECTOR, selector)
    return str(element.value_of_css_property(name))


def choose(browser: Chrome, name: str, value: str) -> None:
    Select(browser.find_element(By.NAME, name)).select_by_value(value)


def test_it_opens_without_errors_and_requests_nothing(browser, compared):
    open_page(browser, compared.out)
    page = (compared.out / "index.html").as_uri()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = {
        request["request"]["url"] for request in requests if request["documentURL"] == page
    }  # not the browser's own
    assert {url for url in urls if not url.startswith("data:")} == {page}
    assert browser.get_log("browser") == []
    headings = [heading.text for heading in browser.find_elements(By.TAG_NAME, "h2")]
    assert headings == [
        "Scores",
        "Quality and cost",
        "By size",
        "Every score",
        "Differences to teacher",
        "Training",
        "Gallery",
        "How this was measured",
        "Words",
    ]
    assert all(svg.size["width"] > 200 for svg in browser.find_elements(By.CSS_SELECTOR, "figure svg"))
    images = browser.find_elements(By.CSS_SELECTOR, ".panel img")
    assert images and all(browser.execute_script("return arguments[0].naturalWidth", i) > 0 for i in images)


def test_filters_filter(browser, compared):
    open_page(browser, compared.out)
    every = shown(browser)
    assert len(every) == 12 and {row["size"] for row in every} == {"large", "medium", "small"}
    reasons = [why.text for why in browser.find_elements(By.CSS_SELECTOR, ".instance .why") if why.is_displayed()]
    kinds = ["worst", "median", "best", "worst"]  # of four instances of each size
    assert sorted(reasons) == sorted(f"{kind} of {size}" for kind in kinds for size in ("large", "medium", "small"))
    assert [why.split()[0] for why in reasons[:3]] == kinds[:3]
    choose(browser, "order", "worst")
    worst = [min(row["ious"].values()) for row in shown(browser)]
    assert worst == sorted(worst)
    choose(browser, "size", "small")
    assert [row["size"] for row in shown(browser)] == ["small"] * 4
    choose(browser, "size", "")
    choose(browser, "model", "student")
    of_student = [row["ious"]["student"] for row in shown(browser)]
    assert len(of_student) == 12 and of_student == sorted(of_student)
    panels = [p for p in browser.find_elements(By.CSS_SELECTOR, "[data-model]") if p.is_displayed()]
    assert {panel.get_attribute("data-model") for panel in panels} == {"student"}
    limit = browser.find_element(By.NAME, "least")
    limit.clear()
    limit.send_keys(str(of_student[5]))
    kept = [row["ious"]["student"] for row in shown(browser)]
    assert kept == [iou for iou in of_student if iou >= of_student[5]]
    assert browser.find_element(By.CSS_SELECTOR, "#filters output").text == f"{len(kept)} shown"
    choose(browser, "order", "best")
    assert [row["ious"]["student"] for row in shown(browser)] == kept[::-1]


def test_an_address_keeps_the_filters(browser, compared):
    open_page(browser, compared.out)
    choose(browser, "size", "large")
    choose(browser, "prompt", "1 click, best of three")
    state = "#" + browser.current_url.partition("#")[2]
    open_page(browser, compared.out, state)
    rows = shown(browser)
    assert [row["size"] for row in rows] == ["large"] * 4
    assert set(rows[0]["ious"]) == {"teacher", "student"}  # the oracle was asked by box alone


def test_a_dark_reader_has_dark_pages_and_plots(browser, compared):
    seen = {}
    for scheme in ("light", "dark"):
        with as_seen_by(browser, scheme=scheme):
            open_page(browser, compared.out)
            tick = "figure svg text"
            seen[scheme] = [style_of(browser, "body", name) for name in ("background-color", "color")]
            seen[scheme] += [style_of(browser, tick, "fill"), style_of(browser, "#filters select", "background-color")]
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))


@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_the_window_and_tables_say_that_they_go_on(browser, compared, width):
    with as_seen_by(browser, width=width):
        open_page(browser, compared.out)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        tables = browser.find_elements(By.CSS_SELECTOR, ".wide")
        overflow = []
        for wide in tables:
            scroller = wide.find_element(By.CSS_SELECTOR, ".scroll")
            overflows = browser.execute_script(
                "return arguments[0].scrollWidth > arguments[0].clientWidth + 1", scroller
            )
            assert wide.find_element(By.CSS_SELECTOR, ".more").is_displayed() == overflows
            assert (scroller.get_attribute("tabindex") == "0") == overflows  # so that arrow keys scroll it
            overflow.append(overflows)
        assert any(overflow) or width > 400
        scores = tables[0].find_element(By.CSS_SELECTOR, ".scroll")
        if overflow[0]:
            browser.execute_script(
                "arguments[0].scrollLeft = 1e6; arguments[0].dispatchEvent(new Event('scroll'))", scores
            )
            assert "at-end" in tables[0].get_attribute("class")
            name = tables[0].find_element(By.CSS_SELECTOR, "tbody td")
            assert name.location["x"] >= scores.location["x"]  # the first column stays in view


def test_words_are_explained_by_pointer_and_by_keyboard(browser, compared):
    with as_seen_by(browser, width=400):
        open_page(browser, compared.out)
        tip, body = browser.find_element(By.ID, "tip"), browser.find_element(By.TAG_NAME, "body")
        assert not tip.is_displayed()
        for _ in range(40):  # from the top of the page, as a reader without a pointer
            browser.switch_to.active_element.send_keys(Keys.TAB)
            if "term" in (browser.switch_to.active_element.get_attribute("class") or ""):
                break
        word = browser.switch_to.active_element
        assert word.text == "single mask" and tip.is_displayed() and "multimask policy" in tip.text
        box = tip.rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400
        described = browser.find_element(By.ID, str(word.get_attribute("aria-describedby")))
        assert described.text == tip.text  # which is what a screen reader reads
        body.send_keys(Keys.ESCAPE)
        assert not tip.is_displayed()
    with as_seen_by(browser):
        open_page(browser, compared.out)
        ActionChains(browser).move_to_element(browser.find_element(By.CSS_SELECTOR, "th .term")).perform()
        assert browser.find_element(By.ID, "tip").is_displayed()


def test_the_first_key_leads_past_the_head(browser, compared):
    open_page(browser, compared.out)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "To the results" and skip.is_displayed()
    skip.send_keys(Keys.ENTER)
    assert browser.current_url.endswith("#content")
