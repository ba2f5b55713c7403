"""The page: one file with tables and pictures that asks the network for nothing; in a browser."""

from __future__ import annotations

import base64
import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_runs import make_grid

from reverie.benchmarks import cli
from reverie.benchmarks.report.document import Document, Figure, Listing, Section, Table, Text
from reverie.benchmarks.report.markdown import as_markdown
from reverie.benchmarks.report.page import as_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """What a page consists of and what it would ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.wanted: list[str] = []
        self.pictures: list[bytes] = []
        self.policy = self.title = ""
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        values = dict(attrs)
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            if values.get(name):
                self.wanted.append(str(values[name]))
        if tag == "img":
            head, _, data = str(values["src"]).partition(",")
            assert head == "data:image/png;base64" and values["alt"]
            self.pictures.append(base64.b64decode(data))
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(values["content"])

    def handle_data(self, data: str) -> None:
        if self._inside == "title" and not self.title:
            self.title = data
        self.words.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a report with all sections."""
    grid = tmp_path_factory.mktemp("page") / "grid"
    tasks = ("atari/pong", "atari/boxing")
    scores = {
        (label, task): [level, level + 2.0, level - 3.0]
        for level, label in ((5.0, "ours"), (1.0, "rainbow"))
        for task in tasks
    }
    make_grid(grid, scores)
    assert cli.main(["bench", "report", str(grid)]) == 0
    return grid / "report"


def test_the_page_has_tables_pictures_and_a_title_and_wants_nothing(report: Path) -> None:
    text = (report / "report.html").read_text()
    page = Page(text)
    assert page.title == "Benchmark report: atari"
    assert page.tags.count("table") >= 7 and page.tags.count("figure") == 5
    links = [want for want in page.wanted if not want.startswith("data:image/png;base64,")]
    assert links and all(re.fullmatch(r"#s\d+", link) for link in links)
    assert page.policy.startswith("default-src 'none'")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "@import" not in text and "url(" not in text
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text)
    assert "prefers-color-scheme: dark" in text
    sizes = []
    for data in page.pictures:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            sizes.append(picture.size)
    assert len(sizes) == 5 and all(width > 500 and height > 100 for width, height in sizes)


def test_the_pictures_of_the_page_are_the_files_beside_it(report: Path) -> None:
    page = Page((report / "report.html").read_text())
    files = {path.read_bytes() for path in report.glob("*.png")}
    assert files == set(page.pictures) and len(files) == 5


def test_whatever_a_name_contains_is_text(tmp_path: Path) -> None:
    evil = "<script src='http://x.invalid/a.js'></script>|<img src=x>"
    blocks = [Text(evil), Listing([evil]), Table((evil,), [[evil]], evil), Figure("a", evil, PIXEL)]
    found = Document(evil, [Section(evil, blocks)])
    page = Page(as_page(found))
    assert "script" not in page.tags and page.tags.count("img") == 1
    assert page.title == evil and page.words.count(evil) >= 6
    (row,) = [line for line in as_markdown(found).splitlines() if line.startswith("| <")][1:]
    assert row.count(" | ") == 0 and "\\|" in row, "one cell stays one cell"


# in a browser


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None and os.environ.get("REVERIE_NO_BROWSER") == "1":
        pytest.skip("REVERIE_NO_BROWSER=1: no page is opened")
    assert found is not None, (
        f"no browser, one of {', '.join(BROWSERS)}: run `sudo apt-get install -y chromium` (as "
        "root .ci/browser does it), or set REVERIE_NO_BROWSER=1"
    )
    return found


class Recorder(http.server.BaseHTTPRequestHandler):
    """A proxy that notes what it is asked for, and has nothing."""

    asked: list[str]

    def _note(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    do_GET = do_HEAD = do_POST = do_CONNECT = _note

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Own", (Recorder,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def opened(browser: str, page: Path, folder: Path, *options: str) -> str:
    """Standard output of a browser that opens `page`."""
    quiet = ("--disable-background-networking", "--disable-component-update", "--no-first-run")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(*quiet, "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage"),
            *(f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_a_browser_shows_tables_and_pictures_and_asks_for_nothing(
    report: Path, browser: str, proxy: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = proxy
    via = (f"--proxy-server={address}", "--proxy-bypass-list=<-loopback>")
    page = report / "report.html"
    seen = Page(opened(browser, page, tmp_path, *via, "--dump-dom"))
    assert seen.tags.count("table") == Page(page.read_text()).tags.count("table") >= 7
    assert len(seen.pictures) == 5 and seen.title == "Benchmark report: atari"
    probe = tmp_path / "probe.html"
    probe.write_text('<img src="http://elsewhere.invalid/x.png">')
    before = [path for path in asked if "google" not in path]
    opened(browser, probe, tmp_path, *via, "--dump-dom")
    assert before == [], "the page asked for something"
    assert any("elsewhere.invalid" in path for path in asked), "the proxy sees every request"


@pytest.mark.slow
def test_a_browser_draws_the_page_light_and_dark(
    report: Path, browser: str, tmp_path: Path
) -> None:
    corners = {}
    for mode, dark in (("light", 1), ("dark", 0)):
        shot = tmp_path / f"{mode}.png"
        own = (f"--blink-settings=preferredColorScheme={dark}", "--window-size=1000,4000")
        opened(browser, report / "report.html", tmp_path, f"--screenshot={shot}", *own)
        with Image.open(shot) as picture:
            colours = picture.convert("RGB").getcolors(2**24)
            corners[mode] = picture.convert("RGB").getpixel((2, 2))
        assert colours is not None and len(colours) > 50, "an empty page"
    assert corners == {"light": (255, 255, 255), "dark": (20, 24, 30)}


@pytest.mark.slow
def test_the_screenshot_of_the_manual_is_made_by_its_script(
    report: Path, browser: str, tmp_path: Path
) -> None:
    script = Path(__file__).parents[1] / "docs" / "make_screenshots.py"
    out = tmp_path / "shot.png"
    command = [sys.executable, str(script), str(report / "report.html"), str(out)]
    subprocess.run(command, check=True, timeout=120)
    with Image.open(out) as picture:
        assert picture.size == (1100, 2500)
    missing = subprocess.run(
        [*command[:2], str(tmp_path / "gone.html")], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1 and "expected the page" in missing.stderr
    committed = script.with_name("report.png")
    with Image.open(committed) as picture:
        assert picture.size == (1100, 2500)
    assert committed.stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_smoke_suite_becomes_a_page_in_a_browser(browser: str, tmp_path: Path) -> None:
    grid, page = tmp_path / "smoke", tmp_path / "page.html"
    begin = time.monotonic()
    assert cli.main(["bench", "run", "smoke", "--jobs", "2", "--out", str(grid)]) == 0
    assert cli.main(["bench", "report", str(grid), "--html", str(page)]) == 0
    assert time.monotonic() - begin < 600
    shown = Page(opened(browser, page, tmp_path, "--dump-dom"))
    assert shown.tags.count("table") >= 4 and len(shown.pictures) >= 3
    for label in ("mudreamer", "dreamerv3", "spr", "rainbow"):
        assert label in shown.words
        assert len(list((grid / "runs" / "toy").glob(f"*/{label}/*/card.md"))) == 4, label
    lines = (grid / "report" / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 16, "four arms, two tasks, two seeds"
