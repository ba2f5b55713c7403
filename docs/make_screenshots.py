"""Screenshot of a report page: python docs/make_screenshots.py GRID/report/report.html [PNG].

Needs Chromium (.ci/browser installs it) and draws the top of the page, as light as the browser is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1100, 2500)
COLOURS = 128


def main(page: Path, out: Path) -> int:
    """Write `out`; returns the exit status."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None or not page.is_file():
        missing = f"the page {page}" if browser else f"a browser, one of {', '.join(BROWSERS)}"
        sys.stderr.write(f"expected {missing}, found none; see .ci/browser and `bench report`\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "page.png")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        options += ["--window-size={},{}".format(*SIZE), page.resolve().as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True, timeout=120)
        with Image.open(shot) as picture:
            picture.convert("RGB").quantize(COLOURS).save(out, optimize=True)
    return 0


if __name__ == "__main__":
    words = [Path(word) for word in sys.argv[1:]]
    if not 1 <= len(words) <= 2:
        sys.exit(__doc__)
    sys.exit(main(words[0], words[1] if len(words) > 1 else Path(__file__).with_name("report.png")))
