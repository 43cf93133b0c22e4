"""The page in a real browser: clicks and boxes of a person, with the server and by WebAssembly."""

from __future__ import annotations

import functools
import io
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("selenium")
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from distill.demo.answers import Demo, ShownModel
from distill.demo.server import DemoServer
from distill.demo.static import provide_runtime, write_static
from distill.errors import DistillError
from distill.models.predictor import Predictor
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1100,900"""
HW = (90, 120)
SECONDS = 60

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


def build(seed: int) -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_from_spec(ModelSpec("efficientvit_sam_t", 64, 32, 8, 64, 1e-6)).eval()


def png(seed: int = 0) -> bytes:
    small = np.random.RandomState(seed).randint(0, 256, (9, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(HW[::-1]).save(buffer, "PNG")
    return buffer.getvalue()


def wait(browser: Chrome, ready) -> None:
    def loaded(driver: Chrome) -> bool:
        message = driver.find_element(By.ID, "message")
        assert "error" not in message.get_attribute("class"), message.text
        return ready(driver)

    WebDriverWait(browser, SECONDS, poll_frequency=0.05).until(loaded)


def open_page(browser: Chrome, url: str) -> None:
    browser.get(url)
    wait(browser, lambda driver: driver.execute_script("return document.body.dataset.photo"))
    browser.get_log("performance")


def pointer(browser: Chrome, panel: int = 0):
    """Return a function from the photo's pixels to the offsets from the canvas' middle that selenium takes."""
    canvas = browser.find_elements(By.CSS_SELECTOR, "canvas")[panel]
    box = browser.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.width, b.height]", canvas)
    scale = min(box[0] / HW[1], box[1] / HW[0])
    return canvas, lambda x, y: (round(x * scale - box[0] / 2), round(y * scale - box[1] / 2))


def numbers(browser: Chrome) -> list[str]:
    return [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".numbers")]


def act(browser: Chrome, chain: ActionChains) -> None:
    """Perform actions, and wait until what they ask for is shown."""
    before = browser.execute_script("return document.body.dataset.round")
    chain.perform()
    wait(browser, lambda driver: driver.execute_script("return document.body.dataset.round") not in ("", before))


def click(browser: Chrome, x: float, y: float, *, off: bool = False, panel: int = 0) -> None:
    canvas, at = pointer(browser, panel)
    chain = ActionChains(browser).move_to_element_with_offset(canvas, *at(x, y))
    act(browser, chain.context_click() if off else chain.click())


def draw_box(browser: Chrome, x0: float, y0: float, x1: float, y1: float) -> None:
    canvas, at = pointer(browser)
    chain = ActionChains(browser).move_to_element_with_offset(canvas, *at(x0, y0)).click_and_hold()
    act(browser, chain.move_to_element_with_offset(canvas, *at(x1, y1)).release())


def shown_mask(browser: Chrome, panel: int, photo: bytes) -> np.ndarray:
    """Return the pixels that the page has tinted, bool (H, W): where the canvas differs from the photo."""
    script = """const c = document.querySelectorAll("canvas")[arguments[0]];
        return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data)"""
    drawn = np.array(browser.execute_script(script, panel), np.int64).reshape(*HW, 4)[..., :3]
    return (np.abs(drawn - np.asarray(Image.open(io.BytesIO(photo)), np.int64)) > 2).any(-1)


def expected_mask(model: PromptableModel, photo: bytes, **prompt) -> np.ndarray:
    predictor = Predictor(model)
    predictor.set_image(np.asarray(Image.open(io.BytesIO(photo))))
    masks, iou, _ = predictor.predict(**prompt)
    return masks[iou.argmax()]


def agreement(shown: np.ndarray, expected: np.ndarray, drawn: np.ndarray) -> float:
    """Return the share of equal pixels, away from the prompt that is drawn over the mask."""
    return float((shown == expected)[~drawn].mean())


def around(*points: tuple[float, float], radius: float = 3) -> np.ndarray:
    y, x = np.mgrid[: HW[0], : HW[1]] + 0.5
    return np.any([(x - px) ** 2 + (y - py) ** 2 < radius**2 for px, py in points], 0)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[DemoServer, list[PromptableModel]]]:
    models = [build(0), build(1)]
    with DemoServer() as server:
        server.demo = Demo([ShownModel("student", models[0]), ShownModel("teacher", models[1])], png())
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server, models
        server.shutdown()
        thread.join()


def test_student_and_teacher_side_by_side(browser, served):
    server, models = served
    open_page(browser, server.url)
    assert [title.text for title in browser.find_elements(By.CSS_SELECTOR, ".title")] == ["student", "teacher"]
    click(browser, 40, 30)
    prompt = {"point_coords": [[40, 30]], "point_labels": [1]}
    for panel, model in enumerate(models):
        expected = expected_mask(model, png(), **prompt)
        assert agreement(shown_mask(browser, panel, png()), expected, around((40, 30))) > 0.97
    for text in numbers(browser):
        assert "embedding" in text and "mask" in text and "predicted IoU" in text
    both = [expected_mask(model, png(), **prompt) for model in models]
    iou = (both[0] & both[1]).sum() / max((both[0] | both[1]).sum(), 1)
    assert abs(float(browser.find_element(By.ID, "agreement").text.rpartition(" ")[2]) - iou) < 0.05

    click(browser, 90, 70, off=True, panel=1)  # a click on either panel is for both
    prompt = {"point_coords": [[40, 30], [90, 70]], "point_labels": [1, 0], "multimask_output": False}
    expected = expected_mask(models[0], png(), **prompt)
    assert agreement(shown_mask(browser, 0, png()), expected, around((40, 30), (90, 70))) > 0.97

    browser.find_element(By.ID, "clear").click()
    wait(browser, lambda driver: not driver.execute_script("return document.body.dataset.round"))
    draw_box(browser, 20, 10, 100, 80)
    expected = expected_mask(models[0], png(), box=[20, 10, 100, 80], multimask_output=False)
    y, x = np.mgrid[: HW[0], : HW[1]]
    on_line = (np.minimum(abs(x - 20), abs(x - 100)) < 4) | (np.minimum(abs(y - 10), abs(y - 80)) < 4)
    assert agreement(shown_mask(browser, 0, png()), expected, on_line) > 0.95
    assert not [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]


def test_a_photo_of_the_person(browser, served, tmp_path):
    server = served[0]
    open_page(browser, server.url)
    before = browser.execute_script("return document.body.dataset.photo")
    (tmp_path / "mine.png").write_bytes(png(5))
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "mine.png"))
    wait(browser, lambda driver: driver.execute_script("return document.body.dataset.photo") != before)
    click(browser, 60, 45)
    expected = expected_mask(served[1][0], png(5), point_coords=[[60, 45]], point_labels=[1])
    assert agreement(shown_mask(browser, 0, png(5)), expected, around((60, 45))) > 0.97
    (tmp_path / "text.png").write_text("no photo")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "text.png"))
    WebDriverWait(browser, SECONDS).until(
        lambda driver: "error" in driver.find_element(By.ID, "message").get_attribute("class")
    )


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let npm fetch onnxruntime-web once."""
    folder = tmp_path_factory.mktemp("runtime")
    try:
        provide_runtime(folder)
    except DistillError as error:
        pytest.skip(f"needs onnxruntime-web: {error}")
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.mark.slow
def test_the_student_in_the_browser_alone(browser, runtime, tmp_path):
    model, site = build(0), tmp_path / "site"
    files = write_static(model, site, png(), title="student", runtime=runtime)
    assert all(file.is_file() for file in files)
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/"
            browser.get_log("performance")
            browser.get(url)
            wait(browser, lambda driver: driver.execute_script("return document.body.dataset.photo"))
            events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
            asked = [
                event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
            ]
            assert {one for one in asked if not one.startswith((url, "blob:", "data:", "chrome"))} == set()
            click(browser, 40, 30)
            expected = expected_mask(model, png(), point_coords=[[40, 30]], point_labels=[1])
            assert agreement(shown_mask(browser, 0, png()), expected, around((40, 30))) > 0.97
            browser.find_element(By.ID, "clear").click()
            draw_box(browser, 20, 10, 100, 80)
            expected = expected_mask(model, png(), box=[20, 10, 100, 80], multimask_output=False)
            y, x = np.mgrid[: HW[0], : HW[1]]
            on_line = (np.minimum(abs(x - 20), abs(x - 100)) < 4) | (np.minimum(abs(y - 10), abs(y - 80)) < 4)
            assert agreement(shown_mask(browser, 0, png()), expected, on_line) > 0.95
        finally:
            server.shutdown()
            thread.join()
