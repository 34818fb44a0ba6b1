"""NNI's web UI and TensorBoard in a headless Chromium, as a user sees and uses them.

For ``benchmarks/screenshots.py``, which takes the pictures of the documentation, and for the tests.
NNI's icons and fonts come from a content delivery network: without it, icons are empty boxes.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import (
    StaleElementReferenceException,
    TimeoutException,
    WebDriverException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

LARGEST = 190_000  # bytes of a picture with all its colours
SECONDS = 120  # to wait for what a page shows

_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--no-first-run", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--no-proxy-server", "--hide-scrollbars", "--force-device-scale-factor=1",
)  # fmt: skip


def missing() -> str | None:
    """Say what is not installed of a browser and its driver."""
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)):
        if not any(shutil.which(name) for name in names):
            return f"no {names[0]} on PATH (Debian: apt install chromium chromium-driver)"
    return None


@contextlib.contextmanager
def browser(
    profile: Path, width: int = 1280, height: int = 1000, more: Sequence[str] = ()
) -> Iterator[webdriver.Chrome]:
    """Start a browser with a profile of its own and `more` options, and end it."""
    options = webdriver.ChromeOptions()
    own = (f"--user-data-dir={profile}", f"--window-size={width},{height}")
    for option in (*_OPTIONS, *own, *more):
        options.add_argument(option)
    names = ("chromium", "chromium-browser", "google-chrome")
    options.binary_location = next(filter(None, map(shutil.which, names)))
    # Both named: else selenium looks for downloads.
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(SECONDS)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """What the pages of web UI and TensorBoard have in common."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def find(self, path: str) -> list[WebElement]:
        """Return all elements of an XPath."""
        return self.driver.find_elements(By.XPATH, path)

    def wait(self, what: Any) -> Any:
        """Wait for a function of no argument to return something true; elements may be redrawn."""

        def ready(_driver: Any) -> Any:
            try:
                return what()
            except StaleElementReferenceException:
                return None

        try:
            return WebDriverWait(self.driver, SECONDS, poll_frequency=0.25).until(ready)
        except TimeoutException:
            text = self.driver.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"not there in {SECONDS} s; the page shows:\n{text}") from None

    def click(self, path: str, number: int = 0) -> None:
        """Click an element once it is there."""

        def press() -> bool:
            found = [e for e in self.find(path) if e.is_enabled()]
            if len(found) <= number:
                return False
            # Icons that are not loaded and dialogs that fade in get in the way of a real click.
            self.driver.execute_script("arguments[0].click()", found[number])
            return True

        self.wait(press)

    def text(self) -> str:
        """Return the text of the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def shot(self, file: Path, element: str | None = None, height: int | None = None) -> Path:
        """Save a picture of the window or of one element, small enough for the documentation.

        Icons that were not loaded are boxes without a meaning: they are left out.
        """
        from PIL import Image

        self.driver.execute_script(_NO_ICONS)
        time.sleep(1)  # what fades in or is drawn step by step
        part = self.driver if element is None else self.wait(lambda: self.find(element))[0]
        png = part.get_screenshot_as_png() if element is None else part.screenshot_as_png
        image = Image.open(io.BytesIO(png)).convert("RGB")
        if height is not None:
            image = image.crop((0, 0, image.width, min(height, image.height)))
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, optimize=True)
        if file.stat().st_size > LARGEST:
            image.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
        return file


_NO_ICONS = """
const style = document.createElement('style');
style.textContent = 'i[data-icon-name] { visibility: hidden !important; }';
document.head.append(style);
"""

# Echarts draws on a canvas; what it draws is asked of the component that holds it.
_CHARTS = """
return [...document.querySelectorAll(arguments[0])].map(node => {
  let fiber = node[Object.keys(node).find(key => key.startsWith('__reactFiber'))];
  while (fiber && !(fiber.stateNode && fiber.stateNode.getEchartsInstance)) fiber = fiber.return;
  if (!fiber) return null;
  const value = point => point && point.value !== undefined ? point.value : point;
  return fiber.stateNode.getEchartsInstance().getOption().series.map(
    line => ({name: line.name, data: line.data.map(value)}));
});
"""


class WebUI(Page):
    """The web UI of one experiment."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        super().__init__(driver)
        self.url = url.rstrip("/")

    def overview(self) -> str:
        """Open the overview; return its text."""
        self.driver.get(f"{self.url}/oview")
        self.wait(lambda: "Trial numbers" in self.text() and self.rows())
        return self.text()

    def detail(self) -> None:
        """Open the page of the trials."""
        self.driver.get(f"{self.url}/detail")
        self.wait(self.rows)

    def rows(self) -> list[WebElement]:
        """Return the lines of the table of trials."""
        return self.find("//*[@data-automationid='DetailsRow']")

    def add_columns(self, names: Sequence[str]) -> None:
        """Tick columns in the dialog of that name."""
        self.click("//button[.//span[text()='Add/Remove columns']]")
        for name in names:
            label = f"//label[.//span[text()='{name}']]"
            self.click(f"{label}/preceding-sibling::input")
        self.click("//*[contains(@class,'ms-Dialog')]//button[.//span[text()='Save']]")
        self.wait(lambda: not self.find("//*[contains(@class,'ms-Dialog-main')]"))

    def table(self) -> dict[str, dict[str, str]]:
        """Return what the table shows: trial -> column key -> text."""
        shown = {}
        for row in self.rows():
            cells = row.find_elements(By.XPATH, ".//*[@data-automation-key]")
            texts = {cell.get_attribute("data-automation-key"): cell.text for cell in cells}
            shown[texts["id"].split()[0]] = texts
        return shown

    def tab(self, name: str) -> None:
        """Show one of the charts above the table."""
        self.click(f"//*[@role='tab'][contains(., '{name}')]")

    def axes(self) -> dict[str, list[str]]:
        """Return the axes of the hyper-parameter view with their labels."""

        def read() -> dict[str, list[str]]:
            found = {}
            for axis in self.find("//*[name()='g' and contains(@class, 'dimension')]"):
                texts = [t.text for t in axis.find_elements(By.XPATH, ".//*[name()='text']")]
                if texts:
                    found[texts[-1]] = texts[:-1]
            return found

        return self.wait(read)

    def tick(self, trials: Sequence[str]) -> None:
        """Tick trials in the table, and no others."""
        for row in self.rows():
            name = row.find_element(By.XPATH, ".//*[@data-automation-key='id']").text.split()[0]
            box = row.find_element(By.XPATH, ".//input[@type='checkbox']")
            if box.is_selected() != (name in trials):
                self.driver.execute_script("arguments[0].click()", box)

    def curve(self, trial: str) -> list[float]:
        """Open the window of a trial's intermediate results; return the points it draws."""
        number = list(self.table()).index(trial)
        self.click("//button[@title='Intermediate']", number)
        inside = "[class*=ms-Modal] .echarts-for-react, .ms-Layer .echarts-for-react"

        def drawn() -> list[float]:
            charts = [chart for chart in self.driver.execute_script(_CHARTS, inside) if chart]
            lines = [line for chart in charts for line in chart if line["name"] == trial]
            return lines[0]["data"] if lines else []

        return self.wait(drawn)

    def charts(self) -> list[dict[str, Any]]:
        """Return the lines and points of all charts on the page."""
        found = self.driver.execute_script(_CHARTS, ".echarts-for-react")
        return [line for chart in found if chart for line in chart]

    def close_dialog(self) -> None:
        """Close what lies above the page."""
        self.click("//*[contains(@class,'ms-Modal')]//button[.//i[@data-icon-name='Cancel']]")
        self.wait(
            lambda: not self.find("//*[contains(@class,'ms-Modal') and contains(@class,'is-open')]")
        )

    def tensorboard(self, trials: Sequence[str]) -> TensorBoard:
        """Open TensorBoard for trials by the web UI's own button."""
        self.tick(trials)
        known = set(self.driver.window_handles)
        self.click("//button[.//span[text()='TensorBoard']]")
        self.click("//*[contains(@class,'ms-Dialog')]//button[.//span[text()='Ok']]")
        opened = self.wait(lambda: set(self.driver.window_handles) - known)
        self.driver.switch_to.window(opened.pop())
        return TensorBoard(self.driver)


# The box for filtering tags lies inside of other components.
_FILTER = """
const find = root => {
  for (const element of root.querySelectorAll('*')) {
    if (element.localName === 'tf-tag-filterer') return element;
    const inner = element.shadowRoot && find(element.shadowRoot);
    if (inner) return inner;
  }
  return null;
};
const box = find(document);
if (box) box.set('_tagFilter', arguments[0]);
return box !== null;
"""


class TensorBoard(Page):
    """A TensorBoard that the web UI has opened in a window of its own."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        super().__init__(driver)
        self.wait(lambda: driver.current_url.startswith("http"))
        self.url = driver.current_url.split("#")[0].rstrip("/")

        def loaded() -> bool:
            # The web UI opens the window when the process runs; until it listens takes longer.
            if driver.title == "TensorBoard":
                return True
            with contextlib.suppress(WebDriverException):
                driver.get(self.url)
            return False

        self.wait(loaded)

    def show(self, view: str, tag: str = "") -> None:
        """Open ``scalars``, ``histograms`` or ``images``, of tags that match `tag`."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/#{view}")
        self.wait(lambda: self.driver.execute_script(_FILTER, tag))

    def data(self, path: str) -> Any:
        """Fetch what the page itself would, ``data/...``, from inside the page."""
        script = """
        const done = arguments[1];
        fetch(arguments[0]).then(answer => answer.json()).then(done, error => done(String(error)));
        """
        return self.driver.execute_async_script(script, f"{self.url}/data/{path}")

    def runs(self) -> list[str]:
        """Return the runs it knows, once there are any."""
        return self.wait(lambda: self.data("runs"))
