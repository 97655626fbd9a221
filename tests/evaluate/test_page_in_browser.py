"""The page in a real browser (Chromium, headless); skipped where there is none."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from madkit.evaluate.report import GalleryItem, write_report

from .browser import BROWSER, Browser

ATTACK = '</title></style></text></svg><img src=x onerror="window.attacked=1"><script>window.attacked=1</script>\'"&'
# fmt: off
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
]
# fmt: on

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


def browse(folder: Path, page: Path, *flags: str, width: int = 1200) -> tuple[str, str]:
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1500", *flags]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.fixture
def page(shared_results, tmp_path) -> Path:
    out = io.BytesIO()
    Image.new("RGB", (96, 96), (200, 190, 170)).save(out, "PNG")
    item = GalleryItem(
        image_png=out.getvalue(), boxes=[(10, 10, 50, 50)], labels=["cup"], text="A long hypothesis about a cup. " * 4,
        truth="entailment", answers={"finetune": "neutral"}, selected_regions=[0],
    )  # fmt: skip
    return write_report(tmp_path / "report", shared_results, gallery=[item])


def test_light_and_dark_render_without_a_word_on_the_console(page, tmp_path):
    seen = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{scheme}.png"
        _, log = browse(tmp_path, page, f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={number}")
        assert "CONSOLE" not in log
        with Image.open(shot) as picture:
            assert len(picture.convert("RGB").getcolors(10**6) or []) > 100  # text, plots and badges, not a blank page
            seen[scheme] = picture.convert("L").resize((1, 1)).getpixel((0, 0))
    assert seen["dark"] < 80 < 200 < seen["light"]


@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_is_wider_than_the_window(page, tmp_path, width):
    """A copy of the page measures itself; the page as shipped allows no script."""
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\".*?>", "", page.read_text())
    script = "<script>document.title = 'width ' + document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    copy = tmp_path / "measured.html"
    copy.write_text(text.replace("<details", "<details open").replace("</body>", script + "</body>"))
    dom, _ = browse(tmp_path, copy, "--dump-dom", width=width)
    found = re.search(r"<title>width (\d+) of (\d+)", dom)
    assert found is not None
    assert int(found[1]) <= int(found[2]) <= width


@pytest.fixture(scope="module")
def hostile(shared_results, tmp_path_factory) -> Path:
    """A page whose every text is an attack, with all parts that a page can have."""
    folder = tmp_path_factory.mktemp("hostile")

    def bad(row: object) -> object:
        names = {item.name for item in fields(row)} & {"label", "arm", "student", "first", "second"}
        return replace(row, **{name: ATTACK + getattr(row, name) for name in names})

    parts = ("rows", "calibrations", "robustness", "agreements")
    results = replace(shared_results, **{name: tuple(map(bad, getattr(shared_results, name))) for name in parts})
    results = replace(
        results,
        sources=tuple(replace(one, title=ATTACK) for one in results.sources),
        problems=({"where": ATTACK, "error": ATTACK, "hint": ATTACK},),
        settings={**results.settings, "about": ATTACK},
        environment={ATTACK: ATTACK},
        runs=tuple({**run, "path": ATTACK} for run in results.runs),
    )
    out = io.BytesIO()
    Image.new("RGB", (96, 96), (200, 190, 170)).save(out, "PNG")
    label = results.rows[0].label
    item = GalleryItem(
        image_png=out.getvalue(), boxes=[(10, 10, 50, 50)], labels=[ATTACK], text=ATTACK, truth=ATTACK,
        answers={label: ATTACK}, selected_regions=[0], selected_spans=[(0, 9)], candidates=[ATTACK, "no"],
        chances={label: (0.75, 0.25)}, truth_spans=[(0, 9)], group=ATTACK, note=ATTACK, source=ATTACK,
        selected_patches=[(1, 1, 9, 9)],
    )  # fmt: skip
    return write_report(folder / "report", results, gallery=[item], title=ATTACK)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def test_an_attack_stays_text(hostile, browser):
    """The copy without its policy, too: what keeps an attack out is that it was escaped."""
    bare = hostile.with_name("bare.html")
    bare.write_text(re.sub(r"<meta http-equiv=\"Content-Security-Policy\".*?>", "", hostile.read_text()))
    for page in (hostile, bare):
        browser.log.clear()
        browser.requests.clear()
        browser.open(page)
        assert browser.log == []
        assert [address for address in browser.requests if not address.startswith(("file:", "data:"))] == []
        assert browser.value("window.attacked === undefined && document.querySelector('script, img, iframe') === null")
        assert browser.value("document.body.textContent.includes('<img src=x onerror')")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_a_phone_shows_all_of_it(hostile, browser, width, scheme):
    browser.open(hostile, width=width, prefers_color_scheme=scheme)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelectorAll('svg.plot')].filter(one => one.getBoundingClientRect().width > 0)"
    assert browser.value(f"{shown}.length") >= 8
    # no text of a plot is cut at its edge, and none is too small to read
    cut = (
        f"{shown}.flatMap(plot => [...plot.querySelectorAll('text')].filter(text => {{"
        " const a = text.getBoundingClientRect(), b = plot.getBoundingClientRect();"
        " return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1 || a.height < 8"
        "}).map(text => text.textContent))"
    )
    assert browser.value(cut) == []
    # tables that are wider scroll in frames of their own, which the keyboard reaches
    wide = (
        "[...document.querySelectorAll('table')].filter(one => {const frame = one.closest('.scroll');"
        " return one.scrollWidth > one.parentElement.clientWidth + 1 && !(frame && frame.tabIndex === 0)}).length"
    )
    assert browser.value(wide) == 0


def test_targets_are_large_enough_for_a_thumb(hostile, browser):
    """WCAG 2.2, 2.5.8: 24 by 24 CSS pixels, links inside sentences and tables apart."""
    browser.open(hostile, width=390)
    small = (
        "[...document.querySelectorAll('nav a, summary, .switch label')].filter(one => {"
        " const box = one.getBoundingClientRect(); return box.width > 0 && (box.height < 24 || box.width < 24)}).length"
    )
    assert browser.value(small) == 0


def test_the_keyboard_alone_opens_tables_and_hides_boxes(hostile, browser):
    browser.open(hostile)
    browser.press("Tab")
    assert browser.value("document.activeElement.className") == "skip"
    assert browser.value("document.activeElement.getBoundingClientRect().left >= 0")  # seen once it has the focus
    seen = []
    for _ in range(60):
        browser.press("Tab")
        seen.append(browser.value("document.activeElement.tagName"))
        if seen[-1] == "SUMMARY" and not browser.value("document.activeElement.parentElement.open"):
            assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            browser.press("Enter")
            assert browser.value("document.activeElement.parentElement.open")
        if seen[-1] == "INPUT":
            break
    assert seen[-1] == "INPUT"
    assert "A" in seen
    assert "DIV" in seen  # a table's frame
    assert browser.value("getComputedStyle(document.querySelector('.box')).display") != "none"
    browser.press(" ")
    assert browser.value("getComputedStyle(document.querySelector('.box')).display") == "none"


def test_headings_go_down_one_by_one_and_pictures_have_words(hostile, browser):
    browser.open(hostile)
    levels = [int(tag[1]) for tag in browser.value("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => h.tagName)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert browser.value("document.querySelectorAll('th:not([scope])').length") == 0
    assert browser.value("document.querySelectorAll('tbody tr:not(:has(th[scope=row])):not(.plain)').length") == 0
    assert browser.value("[...document.querySelectorAll('svg[role=img]')].filter(s => !s.ariaLabel).length") == 0
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {"image", "img", "table", "link", "checkbox", "region"} - {"table"}
    bare = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node.get("role", {}).get("value") in named
        and not node.get("name", {}).get("value")
    ]
    assert bare == []


def test_who_wants_no_motion_gets_none(hostile, browser):
    browser.open(hostile, prefers_reduced_motion="reduce")
    assert browser.value("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    assert browser.value("document.getAnimations().length") == 0
