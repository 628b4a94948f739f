"""The report in a real browser: it renders without a network, sorts, hovers, follows light and dark, and prints."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.report.figures.curves import PHASES
from experiments.report.html_page import write_report
from experiments.sweep.study import read_study
from tests.support.small_study import write_study_records

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = write_study_records(folder)
    write_report(folder / "report.html", read_study(folder), runs)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian package chromium; .ci/run installs it)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI is root in a container
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, page_path: Path) -> Iterator[Any]:
    """The report, opened; whatever the console said, or was asked of a network, fails the test."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    messages: list[str] = []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith(("file:", "blob:", "data:")) else messages.append(request.url))
    opened.goto(page_path.as_uri())
    opened.wait_for_selector("body[data-ready]")
    yield opened
    opened.close()
    assert messages == []


def column(page: Any, heading: str) -> list[str]:
    place = page.locator("#runs thead th").all_inner_texts()
    number = next(i for i, text in enumerate(place) if text == heading)
    return page.locator(f"#runs tbody tr td:nth-child({number + 1})").all_inner_texts()


@pytest.mark.slow
def test_it_renders(page: Any) -> None:
    assert page.locator("h1").inner_text() == "small"
    assert "12 of 12 runs complete · cpu <of a test>" in page.locator("header p").inner_text()
    assert page.locator("table.headline tbody tr").all_inner_texts()[0].split("\t") == [
        "mean", "97.5 (97.0 to 98.0)", "38.5 (38.0 to 39.0)", "28.5 (28.0 to 29.0)",
    ]  # fmt: skip
    assert page.locator(".plot .main-svg").count() >= 4, "ratio, rounds, matrix and stealth"
    assert page.locator("#runs tbody tr").count() == 12
    lines = page.locator("#chart-0 .scatterlayer .trace").count()
    assert lines == 2, "a line a strategy"


@pytest.mark.slow
def test_headings_sort_numbers_as_numbers(page: Any) -> None:
    heading = page.locator("#runs thead button", has_text="after trigger (%)")
    heading.click()
    left = [float(text) for text in column(page, "after trigger (%)")]
    assert left == sorted(left)
    assert left[0] < left[-1]
    heading.click()
    assert [float(text) for text in column(page, "after trigger (%)")] == left[::-1]
    assert page.locator("th[aria-sort=descending]").inner_text() == "after trigger (%)"
    page.locator("#runs thead button", has_text="stealth gap").click()
    gaps = column(page, "stealth gap")
    assert gaps == ["0.5"] * 8 + ["-"] * 4, "what is missing comes last"
    page.locator("#runs thead button", has_text="strategy").click()
    assert column(page, "strategy") == ["dgc"] * 6 + ["mean"] * 6


@pytest.mark.slow
def test_a_run_shows_what_it_changes_of_the_base(page: Any) -> None:
    button = page.locator("button.config").nth(10)
    button.click()
    changed = page.locator("tr.changes table").first
    rows = [row.split("\t") for row in changed.locator("tbody tr").all_inner_texts()]
    assert rows == [["attack.poison-ratio", "-1", "0.2"], ["strategy.name", "clip-after", "dgc"]], "seed 1 is the default"
    page.locator("tr.changes summary").click()
    assert page.locator("tr.changes details").inner_text().count("\n") > 70, "and every key"
    button.click()
    assert page.locator("tr.changes").count() == 0


@pytest.mark.slow
def test_hovering_names_the_point(page: Any) -> None:
    page.locator("#chart-0").scroll_into_view_if_needed()
    box = page.locator("#chart-0 .scatterlayer .trace").first.locator(".points path").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#chart-0 .hoverlayer .hovertext")
    assert "10.0 % malicious: 38.5 %" in page.locator("#chart-0 .hoverlayer").text_content()


@pytest.mark.slow
def test_another_column_is_chosen(page: Any) -> None:
    chosen = page.locator("select[data-chart]")
    assert chosen.locator("option").all_inner_texts() == ["0", "0.1", "0.2"]
    drawn = "() => (document.getElementById('chart-1').layout.shapes ?? []).length"
    assert page.evaluate(drawn) == 0, "no attack, no phases"
    chosen.select_option("0.2")
    assert page.evaluate(drawn) == 3


@pytest.mark.slow
def test_light_and_dark(page: Any) -> None:
    background = "() => getComputedStyle(document.body).backgroundColor"
    ink = "() => document.getElementById('chart-0').layout.font.color"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == "rgb(15, 20, 25)"
    page.wait_for_function(f"({ink})() !== '{light}'")


@pytest.mark.slow
def test_it_prints_on_paper(page: Any) -> None:
    page.emulate_media(color_scheme="dark", media="print")
    page.wait_for_function("document.getElementById('chart-0').layout.width === PRINT_WIDTH")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "on white, also from a dark page"
    assert page.evaluate("document.getElementById('chart-0').layout.font.color") == "#000000"
    assert page.locator(".modebar").first.is_hidden()
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert 2 <= paper.count(b"/Type /Page\n") <= 8


def test_nothing_of_a_run_is_taken_for_markup(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    study = read_study(tmp_path)
    evil = "</script><img src=x onerror=alert(1)>"
    place = runs[0].folder / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"strategy.name": evil}))
    runs[0].cell.labels["strategy"] = evil  # type: ignore[index]
    write_report(tmp_path / "report.html", study, runs)
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_charts_are_plain_numbers_without_plotlys_template(page_path: Path) -> None:
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page_path.read_text(), re.DOTALL)
    assert data is not None
    charts = json.loads(data[1])["charts"]
    assert [list(figures) for figures in charts] == [[""], ["0", "0.1", "0.2"], [""], [""]]
    assert '"template"' not in data[1]
    assert "bdata" not in data[1], "arrays in base64"
    (mean, dgc) = charts[0][""]["data"]
    assert (mean["x"], mean["y"], mean["error_y"]["array"]) == ([0.0, 10.0, 20.0], [97.5, 38.5, 28.5], [0.5, 0.5, 0.5])
    assert dgc["y"] == [97.5, 97.5, 97.5]
    assert [shape["fillcolor"] for shape in charts[1]["0.2"]["layout"]["shapes"]] == [
        PHASES[name][0] for name in ("accumulate", "trigger", "recover")
    ]
    assert charts[2][""]["data"][0]["z"] == [[97.5, 97.5], [38.5, 97.5], [28.5, 97.5]]
    assert len(data[1]) < 30_000, "the page is to open at once"


@pytest.mark.slow
def test_the_chart_shown_is_the_one_that_is_named(browser: Any, tmp_path: Path) -> None:
    """Where the columns are numbers: JavaScript lists the whole ones first."""
    runs = write_study_records(tmp_path)
    labels = {"0": "0.5", "0.1": "1", "0.2": "0.25"}
    for run in runs:
        run.cell.labels["attack.poison-ratio"] = labels[run.cell.labels["attack.poison-ratio"]]  # type: ignore[index]
    write_report(tmp_path / "report.html", read_study(tmp_path), runs)
    opened = browser.new_page()
    opened.goto((tmp_path / "report.html").as_uri())
    opened.wait_for_selector("body[data-ready]")
    assert opened.locator("select[data-chart]").input_value() == "0.5"
    assert opened.evaluate("() => (document.getElementById('chart-1').layout.shapes ?? []).length") == 0, (
        "that of the runs without an attack"
    )
    opened.close()
