"""The page in a real browser: silent, offline, and no wider than the screen."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hardy.reporting.build import report
from hardy.results import Result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
A4 = 703  # pixels between the margins of the page
playwright = pytest.importorskip("playwright.sync_api", reason="the test needs playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(comparison: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A comparison, one run, and one with names that have no place to break."""
    folder = tmp_path_factory.mktemp("pages")
    result = Result.read(comparison[1] / "result.json")
    long = replace(
        result, class_names=tuple(f"{'class' * 30}{k}" for k in range(10)), command="x" * 500, data="d" * 200
    )
    long.save(folder / ("name" * 40) / "result.json")
    runs = [comparison, comparison[:1], [comparison[0], folder / ("name" * 40)]]
    return [report(each, folder / f"{i}.html") for i, each in enumerate(runs)]


@pytest.mark.parametrize("page", [0, 1, 2], ids=["comparison", "one run", "long names"])
def test_the_page_is_silent_offline_and_fits(browser: Any, pages: list[Path], page: int) -> None:
    tab = browser.new_page()
    noise: list[str] = []
    tab.on("console", lambda message: noise.append(message.text))
    tab.on("pageerror", lambda error: noise.append(str(error)))
    tab.on("request", lambda request: noise.append(request.url))
    tab.goto(pages[page].as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    for width in (390, 1280):
        for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(19, 22, 26)")):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert tab.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length") == 0
    assert [line for line in noise if not line.startswith(("data:", pages[page].as_uri()))] == []
    tab.close()


CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const srgb = c => parse(c).slice(0, 3).map(x => c.startsWith('color(') ? x : x / 255);
  const light = c => { const [r, g, b] = srgb(c).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/^rgba\\(.*, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  const bad = [];
  for (const e of document.querySelectorAll('body *:not(svg *)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(e.className + ' ' + e.textContent.slice(0, 40));
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_asks_for(browser: Any, pages: list[Path], scheme: str) -> None:
    tab = browser.new_page(color_scheme=scheme)
    tab.goto(pages[0].as_uri())
    assert tab.evaluate(CONTRAST) == []
    tab.close()


def test_the_printed_page_is_light_and_shows_what_was_folded(browser: Any, pages: list[Path]) -> None:
    tab = browser.new_page(viewport={"width": A4, "height": 1000}, color_scheme="dark")
    tab.goto(pages[0].as_uri())
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("document.documentElement.scrollWidth") <= A4
    assert tab.evaluate("document.querySelector('details pre').checkVisibility({contentVisibilityAuto: true})")
    assert tab.evaluate("document.querySelector('.verdict thead').getBoundingClientRect().width") > 300
    tab.close()
