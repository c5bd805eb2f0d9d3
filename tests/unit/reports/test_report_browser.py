"""The report in a real browser: it opens without errors or requests, sorts, filters, fits a phone.

Needs Chromium and its driver from the system's packages (Debian: chromium, chromium-driver), and
selenium, which speaks the W3C protocol to a driver that is already there: nothing is downloaded.
"""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_material import EVIL

from raybench.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no Chromium: install the system's packages chromium and chromium-driver",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(stored_results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("browser") / "out"
    shutil.copytree(stored_results, out, ignore=shutil.ignore_patterns("report", "reports"))
    return write_report(out, None, "normalised", lambda text: pytest.fail(text)).page.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1280, 900)
    browser.get(address)
    return browser


def shape(driver: Any, width: int, *, dark: bool = False) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})


FIRST_TABLE = "document.querySelector('[data-sortable] table')"


def column(driver: Any, heading: str, *, shown: bool = True) -> list[str]:
    """Return the texts under a heading of the first table, in their order."""
    script = f"""
        const table = {FIRST_TABLE};
        const heads = Array.from(table.tHead.rows[0].cells, c => c.textContent.trim());
        const place = heads.indexOf(arguments[0]);
        return Array.from(table.tBodies[0].rows).filter(r => !arguments[1] || !r.hidden)
            .map(r => r.cells[place].firstChild.textContent.trim());
    """
    found: list[str] = driver.execute_script(script, heading, shown)
    return found


def button(driver: Any, heading: str) -> Any:
    script = f"""return Array.from({FIRST_TABLE}.tHead.querySelectorAll('button'))
        .find(b => b.textContent.trim() === arguments[0])"""
    return driver.execute_script(script, heading)


def test_it_opens_without_an_error_or_a_request(browser: Any, address: str) -> None:
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(address)
    assert "Robustness report" in browser.title
    for width in (1280, 360):
        shape(browser, width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.startswith("data:")} == {address}


def test_a_name_runs_no_script(page: Any) -> None:
    script = "return document.querySelectorAll('img[src=\"x\"], [onerror]').length"
    assert page.execute_script(script) == 0
    assert EVIL in column(page, "model")


def test_the_policy_stops_what_the_page_does_not_hold(page: Any) -> None:
    outcome = page.execute_async_script(
        """
        const done = arguments[0];
        document.addEventListener('securitypolicyviolation', e => done(e.violatedDirective));
        const image = new Image();
        image.src = 'http://127.0.0.1:9/pixel.png';
        setTimeout(() => done('loaded'), 5000);
        """
    )
    assert outcome == "img-src"
    page.get_log("browser")


def test_a_table_sorts_by_click_and_by_key(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    ranks = column(page, "rank")
    assert [int(rank.rstrip("=")) for rank in ranks] == [1, 2, 3]

    score = button(page, "brittle-score")
    score.click()
    assert [float(text) for text in column(page, "brittle-score")] == sorted(
        float(text) for text in column(page, "brittle-score")
    )
    cell = score.find_element("xpath", "..")
    assert cell.get_attribute("aria-sort") == "ascending"
    score.send_keys(Keys.ENTER)
    falling = [float(text) for text in column(page, "brittle-score")]
    assert falling == sorted(falling, reverse=True)
    assert cell.get_attribute("aria-sort") == "descending"

    button(page, "model").send_keys(Keys.SPACE)
    names = column(page, "model")
    assert names == sorted(names, key=str.casefold)
    sorted_by = page.execute_script(
        f"return {FIRST_TABLE}.tHead.querySelectorAll('[aria-sort]').length"
    )
    assert sorted_by == 1


def test_what_has_no_value_stays_below(page: Any) -> None:
    """A baseline has no R.I.: whichever way that sorts, it comes last."""
    for _ in range(2):
        button(page, "R.I. %").click()
        assert column(page, "R.I. %")[-1] == "baseline"


def test_a_filter_leaves_what_it_names(page: Any) -> None:
    box = page.find_element("css selector", "[data-sortable] input[type=search]")
    count = page.find_element("css selector", "[data-sortable] .count")
    box.send_keys("PLAIN")
    assert sorted(column(page, "model")) == ["plain", "plain-adv"]
    assert count.text == "2 of 3 rows"
    box.send_keys(" adv")
    assert column(page, "model") == ["plain-adv"]
    box.clear()
    box.send_keys("<img")
    assert column(page, "model") == [EVIL]
    box.clear()
    box.send_keys("nothing of the kind")
    assert column(page, "model") == []
    assert len(column(page, "model", shown=False)) == 3


def test_tied_models_are_marked_in_words(page: Any) -> None:
    script = """
        const row = document.querySelector('tr[data-tied]');
        row.dispatchEvent(new MouseEvent('mouseenter'));
        const tied = Array.from(row.parentNode.querySelectorAll('.tiedrow'), r => r.dataset.rank);
        const after = getComputedStyle(row.parentNode.querySelector('.tiedrow th'), '::after');
        return [row.dataset.tied.split(' '), tied, after.content];
    """
    stated, marked, text = page.execute_script(script)
    assert sorted(stated) == sorted(marked)
    assert "tied" in text


@pytest.mark.parametrize("width", [320, 360, 400, 768, 1280])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    shape(page, width)
    page.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_phone_can_still_sort(page: Any) -> None:
    shape(page, 360)
    chip = button(page, "brittle-score")
    assert chip.is_displayed()
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chip)
    chip.click()
    found = [float(text) for text in column(page, "brittle-score")]
    assert found == sorted(found)
    label = page.execute_script(
        f"""const cell = {FIRST_TABLE}.querySelector('tbody td[data-label="brittle-score"]');
        return getComputedStyle(cell, '::before').content"""
    )
    assert label == '"brittle-score"'


def test_dark_mode_changes_the_paper(page: Any) -> None:
    def paper() -> str:
        colour: str = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return colour

    shape(page, 1280)
    light = paper()
    shape(page, 1280, dark=True)
    assert (light, paper()) == ("rgb(255, 255, 255)", "rgb(15, 20, 25)")
    shape(page, 1280)


def test_it_prints_with_everything_unfolded(page: Any) -> None:
    fired = page.execute_script(
        """
        const folded = document.querySelectorAll('details:not([open])').length;
        window.dispatchEvent(new Event('beforeprint'));
        const left = document.querySelectorAll('details:not([open])').length;
        window.dispatchEvent(new Event('afterprint'));
        return [folded, left, document.querySelectorAll('details:not([open])').length];
        """
    )
    assert fired[0] > 0
    assert fired == [fired[0], 0, fired[0]]
    assert base64.b64decode(page.print_page()).startswith(b"%PDF")


def test_it_reads_without_script(
    browser: Any, address: str, request: pytest.FixtureRequest
) -> None:
    def enable() -> None:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

    shape(browser, 1280)
    disable: Callable[..., Any] = browser.execute_cdp_cmd
    request.addfinalizer(enable)
    disable("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(address)
    assert not browser.find_element("css selector", ".tools").is_displayed()
    assert "plain-adv" in browser.find_element("tag name", "table").text
