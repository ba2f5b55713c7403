"""Screenshots of a run in TensorBoard: python docs/tensorboard_screenshots.py RUNS [FOLDER].

Opens a real TensorBoard on a folder of runs, or on one, in headless Chromium (.ci/browser installs
it), clicks what a reader would click, waits until everything is loaded, and writes
tensorboard_rollouts.png and tensorboard_health.png into FOLDER (none: beside this file). One run
must have pictures: train it with --train.inspect-every.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 90.0
"""Seconds until a page must have loaded."""

MOMENT = 3.0
"""Seconds that a page gets to draw; of an animation that then is behind its context."""

HEIGHT, MARGIN = 2400, 24

# in the page: every element, those inside of components included
WALK = """
const all = (root) => [...root.querySelectorAll('*')].flatMap(
    (e) => e.shadowRoot ? [e, ...all(e.shadowRoot)] : [e]);
const named = (name) => all(document).filter((e) => e.localName === name);
const shown = (e) => e.getBoundingClientRect().height > 0;
const foot = (name) => Math.max(...named(name).map((e) => e.getBoundingClientRect().bottom));
const pictures = named('img').filter((e) => e.src.includes('individualImage') && shown(e));
// a category's title may be in a component of its own
const keep = (wanted) => {
    const categories = named('tf-category-paginated-view');
    const chosen = (e) => e.shadowRoot.querySelector('.name').textContent.includes(wanted);
    for (const e of categories)
        if (e.shadowRoot.querySelector('iron-collapse').opened !== chosen(e))
            e.shadowRoot.querySelector('.heading').click();
    return categories.some(chosen);
};
"""
ACTUAL_SIZE = """
const box = named('paper-checkbox').find((e) => e.textContent.includes('actual image size'));
if (box && !box.checked) box.click();
return Boolean(box);
"""
FILTERED = """
const field = named('tf-tag-filterer').map((e) => e.shadowRoot.querySelector('paper-input'))[0];
if (field) field.value = 'PATTERN';
return Boolean(field);
"""
LOADED = """
return pictures.length >= COUNT && pictures.every((e) => e.complete && e.naturalWidth > 0);
"""
REPLAYED = "for (const e of pictures) { const from = e.src; e.src = ''; e.src = from; }"
NAMED_CURVES = """
const cards = named('tf-custom-scalar-multi-line-chart-card').filter(shown);
for (const e of cards) {
    const list = e.shadowRoot.querySelector('#matches-container iron-collapse');
    if (list && !list.opened) e.shadowRoot.querySelector('.toggle-matches-button').click();
}
return cards.length > 0 && cards.some((e) => e.shadowRoot.querySelector('.match-list-entry'))
    && cards.every((e) => e.shadowRoot.querySelector('.matches-text'));
"""


class Browser:
    """A page of a headless Chromium, driven by DevTools messages over a pair of pipes."""

    def __init__(self, program: str, profile: Path, *, width: int, height: int) -> None:
        here, far_out = os.pipe()
        far_in, there = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        options += ["--disable-dev-shm-usage", "--disable-background-networking"]
        # Chromium reads from descriptor 3 and writes to 4
        command = f'exec "$0" "$@" 3<&{far_in} 4>&{far_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *options, "about:blank"],
            pass_fds=(far_in, far_out),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(far_in)
        os.close(far_out)
        self._in, self._out = os.fdopen(here, "rb"), os.fdopen(there, "wb")
        self._count = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._count:
                break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        found: dict[str, Any] = answer["result"]
        return found

    def _message(self) -> bytes:
        parts = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has gone away")
            parts += byte
        return bytes(parts)

    def run(self, script: str) -> Any:
        """Value that the body of a function in the page returns; it may use `all(document)`."""
        wrapped = f"(() => {{ {WALK} {script} }})()"
        answer = self.call("Runtime.evaluate", expression=wrapped, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait(self, script: str, what: str) -> None:
        """Until the script returns something true, twice in a row."""
        end, good = time.monotonic() + PATIENCE, 0
        while good < 2:
            if time.monotonic() > end:
                raise RuntimeError(f"{what} did not load within {PATIENCE:.0f} seconds")
            good = good + 1 if self.run(script) else 0
            time.sleep(0.4)

    def shot(self, *, height: float) -> Image.Image:
        """The upper part of what the page shows."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        return picture.crop((0, 0, picture.width, min(picture.height, round(height))))

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(timeout=20)
        self._in.close()
        self._out.close()


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Address of a TensorBoard that shows `logdir`."""
    options = [
        "--logdir",
        str(logdir),
        "--port",
        "0",
        "--host",
        "127.0.0.1",
        "--load_fast",
        "false",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    rest = None
    try:
        lines = iter(process.stderr.readline, "")
        address = next((found[0] for x in lines if (found := re.search(r"http://\S+", x))), None)
        if address is None:
            raise RuntimeError(f"TensorBoard did not start on {logdir}")
        rest = threading.Thread(target=process.stderr.read)  # or its pipe fills up
        rest.start()
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)
        if rest is not None:
            rest.join()
        process.stderr.close()


def rollouts(browser: Browser, address: str) -> Image.Image:
    """The image page: an imagined rollout in mid-flight beside the error curve."""
    browser.call("Page.navigate", url=f"{address}#images")
    browser.wait(ACTUAL_SIZE, "the image page")
    browser.wait(FILTERED.replace("PATTERN", "(error|_0)$"), "the filter of tags")
    browser.wait("return keep('Tags matching');", "what the filter has found")
    browser.wait(LOADED.replace("COUNT", "2"), "two pictures or more")
    browser.run(REPLAYED)
    browser.wait(LOADED.replace("COUNT", "2"), "two pictures or more")
    time.sleep(MOMENT)
    return browser.shot(height=browser.run("return foot('tf-image-loader')") + MARGIN)


def health(browser: Browser, address: str) -> Image.Image:
    """The health category of the custom scalars, every curve with its name."""
    browser.call("Page.navigate", url=f"{address}#custom_scalars")
    browser.wait("return keep('Health');", "the custom scalars page")
    browser.wait(NAMED_CURVES, "the curves")
    time.sleep(MOMENT)  # curves are drawn behind their names
    return browser.shot(height=browser.run("return foot('tf-category-paginated-view')") + MARGIN)


PAGES: dict[str, tuple[Callable[[Browser, str], Image.Image], int]] = {
    "tensorboard_rollouts.png": (rollouts, 1180),
    "tensorboard_health.png": (health, 1500),
}
"""What shows a picture, and the width of its window."""


def main(run: Path, folder: Path) -> int:
    """Write all pictures; returns the exit status."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None or not list(run.glob("**/events.out.tfevents.*")):
        missing = f"event files below {run}" if program else f"a browser, one of {BROWSERS}"
        sys.stderr.write(f"expected {missing}, found none; see .ci/browser and `reverie train`\n")
        return 1
    with tensorboard(run) as address:
        for name, (taken, width) in PAGES.items():
            with tempfile.TemporaryDirectory() as profile:
                browser = Browser(program, Path(profile), width=width, height=HEIGHT)
                try:
                    picture = taken(browser, address)
                finally:
                    browser.close()
            picture.save(folder / name, optimize=True)
    return 0


if __name__ == "__main__":
    words = [Path(word) for word in sys.argv[1:]]
    if not 1 <= len(words) <= 2:
        sys.exit(__doc__)
    sys.exit(main(words[0], words[1] if len(words) > 1 else Path(__file__).parent))
