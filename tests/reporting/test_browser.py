"""The page in a real browser: silent, offline, and no wider than the screen."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hardy.diagnosis import Finding, Part, diagnose
from hardy.records import Score
from hardy.reporting import diagnosis_report, report
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


LONG = "class" * 30


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of block, and names that have no place to break."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 9)
    ).eval()
    x, y = torch.rand(60, 3, 9, 9), torch.arange(60) % 9
    made = diagnose(net, x, y, class_names=[f"{LONG}{i}" for i in range(9)], command="x" * 400, data_name="d" * 200)
    shots = torch.randint(0, 255, (2, 3, 9, 9), dtype=torch.uint8)
    kept = {
        "pictures": shots,
        "maps": torch.rand(2, 9, 9),
        "labels": y[:2],
        "predictions": y[:2],
        "confidence": torch.ones(2),
    }
    more = (
        Part(
            name="attention", question="Where?",
            tensors={f"sure {name}": value for name, value in kept.items()},
        ),
        Part(
            name="background", question="Back?",
            tensors={"pictures": shots} | {f"pictures {name}": shots for name in ("one", "two", "three")},
            scores=(Score(label="accuracy, plain", value=0.5, n=9, kind="accuracy", series="accuracy"),),
        ),
        Part(
            name="criticality", question="Which?",
            scores=tuple(
                Score(label=f"{LONG}{i}", value=0.5 - i, low=-float(i), high=1.0, n=9, kind="description",
                      series="loss rise", level=float(i), unit="nats", details={"layer": LONG})
                for i in range(3)
            ),
            findings=tuple(Finding(code=s, severity=s, text=LONG, remedy=LONG) for s in ("problem", "note", "good")),
        ),
    )  # fmt: skip
    out = tmp_path_factory.mktemp("page") / "page.html"
    diagnosis_report(replace(made, parts=made.parts + more), out)
    return out


def test_a_diagnosis_is_silent_offline_fits_and_has_contrast(browser: Any, diagnosis: Path) -> None:
    tab = browser.new_page()
    noise: list[str] = []
    tab.on("console", lambda message: noise.append(message.text))
    tab.on("pageerror", lambda error: noise.append(str(error)))
    tab.on("request", lambda request: noise.append(request.url))
    tab.goto(diagnosis.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate(CONTRAST) == []
    assert tab.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length") == 0
    assert [line for line in noise if not line.startswith(("data:", diagnosis.as_uri()))] == []
    tab.close()


def test_one_layer_is_shown_and_the_keyboard_chooses_it(browser: Any, diagnosis: Path) -> None:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(diagnosis.as_uri())
    shown = "[...document.querySelectorAll('.layer')].map(e => e.checkVisibility())"
    assert tab.evaluate(shown) == [False, True]
    tab.focus(".layers input:checked")
    tab.keyboard.press("ArrowUp")
    assert tab.evaluate(shown) == [True, False]
    rows = tab.evaluate(
        "[...document.querySelectorAll('.layer')[0].querySelectorAll('.map')[0].children].map(e => e.offsetHeight)"
    )
    assert abs(rows[0] - rows[1]) <= 1  # names stand beside their rows
    tab.close()
