"""Curves: the numbers drawn are those of the runs, and bad input is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverie.agents.configs import ConfigError
from reverie.benchmarks.curves import main, mean_curve


def make_run(folder: Path, values: list[float]) -> Path:
    folder.mkdir(parents=True)
    rows = [{"step": 10 * i, "eval/mean": v, "other": 1.0} for i, v in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_picture_and_numbers(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", [0, 2, 4]), make_run(tmp_path / "b", [2, 4, 6, 8])
    out = tmp_path / "deep" / "x.png"
    assert main([f"ours={a},{b}", "--out", str(out), "--floor", "1.5"]) == 0
    with Image.open(out) as picture:
        assert picture.size[0] > 500
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["curves"]["ours"][1] == {"step": [0, 10, 20, 30], "value": [2, 4, 6, 8]}
    assert numbers["floor"] == [1.5]
    assert main([f"ours={a},{b}", "--out", str(out), "--until", "10"]) == 0
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["curves"]["ours"][1] == {"step": [0, 10], "value": [2, 4]}


def test_mean_is_over_what_all_seeds_reached() -> None:
    long = (np.array([0.0, 10, 20, 30]), np.array([0.0, 2, 4, 100]))
    short = (np.array([0.0, 20]), np.array([10.0, 10]))
    steps, values = mean_curve([long, short])
    assert steps.tolist() == [0, 10, 20] and values.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nolabel"], "LABEL=RUN"),
        (["x=/nowhere"], "no metrics.jsonl"),
        ([], "at least one"),
    ],
)
def test_bad_input_names_the_fix(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*words, "--out", str(tmp_path / "x.png")])


def test_unknown_metric_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [1.0])
    with pytest.raises(ConfigError, match="no metric 'gone'"):
        main([f"a={run}", "--tag", "gone", "--out", str(tmp_path / "x.png")])
