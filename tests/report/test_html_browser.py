"""The page in a browser: what is drawn, sorted, filtered and linked, and that nothing else happens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_memleak.budget.sizes import format_size
from tests.report.pages import EVIL, MIB, collected, written

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytest.importorskip("plotly", reason='needs plotly: pip install "plotly>=6"')

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH: apt-get install chromium")

QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "extensions", "default-apps")
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in QUIET)]

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page"))


@pytest.fixture
def open_page(browser: Browser, file: Path) -> Iterator[Open]:
    """Opens the file; in the end nothing was asked for, nothing complained of, and no script of a test ran."""
    pages: list[Page] = []
    asked: list[str] = []
    said: list[str] = []

    def open_it(path: Path = file, fragment: str = "", **options: Any) -> Page:
        page = browser.new_context(**options).new_page()
        page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri() + fragment)
        page.wait_for_selector("h1")
        pages.append(page)
        return page

    yield open_it
    for page in pages:
        assert page.evaluate("window.ran === undefined")
        page.context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(pages)
    assert said == []


def names(page: Page) -> list[str]:
    return [text.rpartition("::")[2] for text in page.locator("tr.test:visible .name button").all_text_contents()]


def opened(page: Page, name: str) -> Any:
    """The row of a test, opened, and its charts drawn."""
    page.locator("tr.test", has_text=name).locator(".name button").first.click()
    panel = page.locator("tr.opened").first
    panel.wait_for()
    wait_until(page, "!document.querySelector('.opened .chart:not(.js-plotly-plot)')")
    return panel


def wait_until(page: Page, expression: str) -> None:
    """Playwright's own way is a script in the page, which its policy does not allow."""
    while not page.evaluate(expression):
        page.wait_for_timeout(20)


def test_red_comes_first_and_each_number_is_as_python_writes_it(open_page: Open) -> None:
    page = open_page()
    assert names(page)[:2] == ["test_leaks", f"test_evil[{EVIL}]"]
    shown = dict(zip(names(page), page.locator("tr.test .measured").all_text_contents(), strict=True))
    for record in collected():
        assert shown[record.nodeid.rpartition("::")[2]] == format_size(record.results[0].measured or 0)
    assert page.locator("h1").text_content() == f"2 failed of {len(collected())} tests"
    assert "Predicted, not measured" in page.inner_text(".banner.predicted")
    assert "Fell silent: gw7" in page.inner_text(".banner.red")


def test_it_is_sorted_by_a_column_both_ways_and_then_as_before(open_page: Open) -> None:
    page = open_page()
    first = names(page)
    column = page.locator("th.measured, th.number", has_text="measured")
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    assert names(page)[0] == "test_passes[6]"
    column.locator("button").click()
    assert names(page)[0] == "test_passes[0]"
    column.locator("button").click()
    assert names(page) == first


def test_it_is_filtered_by_words_verdict_card_and_worker(open_page: Open) -> None:
    page = open_page()
    page.fill("#search", "PASSES gw1")
    assert len(names(page)) == 7
    assert page.inner_text("#shown") == f"7 of {len(collected())} tests"
    page.fill("#search", "")
    page.locator(".chip", has_text="failed").click()
    assert len(names(page)) == 2
    page.select_option("#workers", "gw0")
    assert names(page) == ["test_leaks"]
    page.locator(".chip", has_text="failed").click()
    assert sorted(names(page)) == ["test_leaks", "test_with_a_curve"]
    page.select_option("#workers", "")
    page.select_option("#cards", label="simulated H200, cap 4 GiB")
    assert len(names(page)) == len(collected()) - 1
    page.fill("#search", "nothing of the kind")
    assert page.inner_text("#none") == "No test fits."


def test_a_row_opens_to_its_memory_over_time_with_limit_and_peak(open_page: Open) -> None:
    page = open_page()
    opened(page, "test_evil")
    chart = page.evaluate(
        """() => {
            const gd = document.querySelector(".timeline .chart");
            return {x: gd.data[0].x, y: gd.data[0].y, peak: gd.data[1].y, at: gd.data[1].x,
                    levels: gd.layout.shapes.filter((s) => s.xref === "paper" && s.type === "line").map((s) => s.y0),
                    bands: gd.layout.shapes.filter((s) => s.yref === "paper" && s.type === "rect").length}
        }"""
    )
    assert chart["y"] == [0, 512, 48 * MIB - 1024, 1024, 0]
    assert chart["x"] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0], abs=2 / 10_000)
    # The peak stands as high as it was, which no sample was.
    assert (chart["peak"], chart["at"]) == ([48 * MIB], [chart["x"][2]])
    assert set(chart["levels"]) == {48 * MIB, 40 * MIB}
    assert chart["bands"] == 1
    drawn = page.locator(".timeline .chart svg text").all_text_contents()
    assert "limit 40 MiB" in drawn
    assert "peak 48 MiB, measured" in drawn


def test_an_opened_row_says_what_was_alive_who_held_it_and_the_rest(open_page: Open) -> None:
    page = open_page()
    panel = opened(page, "test_evil")
    values = page.evaluate("document.querySelector('.pair .chart').data[0].values")
    assert values == [48 * MIB, 30 * MIB, 30 * MIB, 10 * MIB, 10 * MIB, 8 * MIB]
    text = panel.inner_text()
    for said in ("local '", "second", "third", "kept by", "fp16_size = 41,943,040 B", "What to do", "gw1"):
        assert said in text
    assert panel.locator(".chain code").count() == 4
    link = panel.locator("a", has_text="shots/").get_attribute("href")
    assert link == "./shots/%3Cb%3E%20%22%23.pickle"
    # Everything that a test's names hold is shown as it is, on the page and by plotly.
    assert EVIL in panel.locator(".promise").first.text_content()
    labels = "".join(page.locator(".pair .chart svg text").all_text_contents())
    assert "<b>b</b>" in labels
    assert "&lt;" in labels


def test_keys_open_and_close_and_move(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("curve")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("tr.opened .js-plotly-plot")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert page.url.endswith("#tests%2Ftest_c.py%3A%3Atest_with_a_curve")
    page.keyboard.press("Space")
    assert page.locator("tr.opened").count() == 0
    assert "#" not in page.url


@pytest.mark.parametrize("colons", ["::", "%3A%3A"])
def test_a_link_leads_to_a_test(open_page: Open, colons: str) -> None:
    page = open_page(fragment=f"#tests/test_c.py{colons}test_with_a_curve")
    page.wait_for_selector("tr.opened .js-plotly-plot")
    assert "attempt" in page.inner_text("tr.opened")
    levels = page.evaluate("document.querySelector('.chart').layout.yaxis.range[1]")
    assert levels > 80 * MIB  # the limit is part of the picture


@pytest.mark.parametrize("fragment", ["#%", "#no::such", "#constructor"])
def test_a_link_that_leads_nowhere_opens_nothing(open_page: Open, fragment: str) -> None:
    assert open_page(fragment=fragment).locator("tr.opened").count() == 0


def test_the_worst_name_has_a_link_that_leads_back_to_it(open_page: Open) -> None:
    page = open_page()
    link = opened(page, "test_evil").locator("a", has_text="to this test").get_attribute("href")
    again = open_page(fragment=link)
    assert "test_evil" in again.locator("tr.test.open").inner_text()


def test_another_colour_scheme_draws_the_charts_anew(open_page: Open) -> None:
    page = open_page(color_scheme="light")
    opened(page, "test_with_a_curve")
    colour = "document.querySelector('.chart').layout.font.color"
    before = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    wait_until(page, f"{colour} !== {before!r}")
    assert page.evaluate(colour) == page.evaluate(
        "getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()"
    )


def test_a_phone_need_not_be_scrolled_sideways(open_page: Open) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    opened(page, "test_evil")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_run_that_measured_nothing_says_so(open_page: Open, tmp_path: Path) -> None:
    from pytest_memleak.records.collected import Collected

    page = open_page(written(tmp_path, Collected()))
    assert page.inner_text("h1") == "Nothing was measured"
    assert page.inner_text("#none") == "No test of this run had its memory measured."
    assert not page.locator("#tools").is_visible()
