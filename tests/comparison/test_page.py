"""The page in a real browser: it works from disk, without an error and without a request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium")
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
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
    ]
    assert all(svg.size["width"] > 200 for svg in browser.find_elements(By.TAG_NAME, "svg"))
    images = browser.find_elements(By.CSS_SELECTOR, ".panel img")
    assert images and all(browser.execute_script("return arguments[0].naturalWidth", i) > 0 for i in images)


def test_filters_filter(browser, compared):
    open_page(browser, compared.out)
    every = shown(browser)
    assert len(every) == 12 and {row["size"] for row in every} == {"large", "medium", "small"}
    worst = [min(row["ious"].values()) for row in every]
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
    choose(browser, "prompt", "1 click")
    state = "#" + browser.current_url.partition("#")[2]
    open_page(browser, compared.out, state)
    rows = shown(browser)
    assert [row["size"] for row in rows] == ["large"] * 4
    assert set(rows[0]["ious"]) == {"teacher", "student"}  # the oracle was asked by box alone
