"""The page in a real browser (Chromium, headless); skipped where there is none."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from madkit.evaluate.report import GalleryItem, write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
