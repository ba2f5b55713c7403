"""A real TensorBoard on a real run: what its pages ask the server for, and what a browser shows."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import ROOT

from reverie.agents.resolve import resolve
from reverie.agents.runs.summary import FIRST, SCORES
from reverie.agents.trainer import train

SCRIPT = ROOT / "docs" / "tensorboard_screenshots.py"
RUNS = ("dot/0", "dot/1")
pytestmark = pytest.mark.slow


def script() -> Any:
    found = importlib.util.spec_from_file_location("tensorboard_screenshots", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one agent, which differ in seed and in the width of its layers."""
    folder = tmp_path_factory.mktemp("logs") / "my runs"
    for seed, name in enumerate(RUNS):
        own: dict[str, Any] = {"task": "toy/dot", "seed": seed, "run": str(folder / name)}
        own["train"] = {"steps": 100, "eval_every": 0, "monitor_from": 0, "inspect_every": 1000}
        own["mudreamer"] = {"model": {"units": 8 + seed}}
        assert train(resolve(own, configs=["debug"])) == 0
    return folder


@pytest.fixture(scope="module")
def address(logdir: Path) -> Iterator[str]:
    with script().tensorboard(logdir) as found:
        yield found


def asked(address: str, page: str, body: Any = None, **query: str) -> bytes:
    url = f"{address}data/plugin/{page}?{urllib.parse.urlencode(query)}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: bytes = answer.read()
    return found


def test_runs_are_rows_of_one_table_with_their_final_scores(address: str) -> None:
    wanted = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 10}
    wanted |= {"colParams": [{"metric": {"tag": tag}} for tag in SCORES]}
    groups = json.loads(asked(address, "hparams/session_groups", wanted))["sessionGroups"]
    assert [group["hparams"]["seed"] for group in groups] == [0, 1]
    assert [group["hparams"]["mudreamer.model.units"] for group in groups] == [8, 9]
    for group in groups:
        assert "--mudreamer.model.units" in group["hparams"]["changed"]
        scores = {one["name"]["tag"]: one["value"] for one in group["metricValues"]}
        assert {"eval/mean", "health/alarms", "inspect/error_last"} <= set(scores)
    table = json.loads(asked(address, "hparams/experiment", {"experimentName": ""}))
    names = [info["name"] for info in table["hparamInfos"]]
    assert names[:5] == sorted(FIRST)


def test_the_projector_is_served_vectors_labels_and_pictures(address: str) -> None:
    assert sorted(json.loads(asked(address, "projector/runs"))) == sorted(RUNS)
    about = json.loads(asked(address, "projector/info", run=RUNS[0]))
    (cloud,) = about["embeddings"]
    which = {"run": RUNS[0], "name": cloud["tensorName"]}
    count, size = cloud["tensorShape"]
    assert len(asked(address, "projector/tensor", **which)) == 4 * count * size
    labels = asked(address, "projector/metadata", **which).decode().splitlines()
    assert len(labels) == count + 1 and labels[0].split("\t")[:2] == ["kind", "window"]
    assert asked(address, "projector/sprite_image", **which).startswith(b"\x89PNG")


def test_the_custom_scalars_have_their_categories_and_curves(address: str) -> None:
    layout = json.loads(asked(address, "custom_scalars/layout"))
    charts = {c["title"]: [chart["title"] for chart in c["chart"]] for c in layout["category"]}
    assert list(charts) == ["Returns", "Losses", "Health", "Imagination", "Speed"]
    assert "alarms" in charts["Health"] and "held out" not in charts["Losses"]
    found = json.loads(
        asked(address, "custom_scalars/scalars", run=RUNS[1], tag=r"health/\w*cosine")
    )
    assert found["regex_valid"]
    assert set(found["tag_to_events"]) == {"health/target_cosine", "health/embed_cosine"}


# in a browser


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in script().BROWSERS if (path := shutil.which(name))), None)
    if found is None and os.environ.get("REVERIE_NO_BROWSER") == "1":
        pytest.skip("REVERIE_NO_BROWSER=1: no page is opened")
    assert found is not None, (
        "no browser: run `sudo apt-get install -y chromium` "
        "(as root .ci/browser does it), or set REVERIE_NO_BROWSER=1"
    )
    return found


def test_the_screenshots_of_the_manual_are_made_by_their_script(
    logdir: Path, browser: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(SCRIPT), str(logdir / RUNS[0]), str(tmp_path)]
    subprocess.run(command, check=True, timeout=280)
    for name, width in (("tensorboard_rollouts.png", 1180), ("tensorboard_health.png", 1500)):
        for path in (tmp_path / name, SCRIPT.with_name(name)):
            with Image.open(path) as picture:
                assert picture.size[0] == width and 700 < picture.size[1] < 2400, path
                colours = picture.convert("RGB").getcolors(2**24)
            assert colours is not None and len(colours) > 150, "an empty page"
            assert path.stat().st_size < 400_000
        with Image.open(tmp_path / name) as picture:
            lower = picture.convert("L").crop((400, 150, width, picture.size[1]))
        dark = sum(lower.histogram()[:140]) / (lower.width * lower.height)
        assert dark > 0.005, "pictures and curves are drawn"


def test_a_folder_without_a_run_is_told(tmp_path: Path, browser: str) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "expected event files" in done.stderr
