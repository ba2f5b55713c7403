"""Curves: the numbers drawn are those of the runs, groups are honest, and bad input is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reverie.agents.configs import ConfigError
from reverie.agents.resolve import dump, resolve
from reverie.benchmarks.curves import compare, curve, group, main, parse
from reverie.benchmarks.stats import bootstrap_difference, bootstrap_mean_interval


def make_run(folder: Path, values: list[float], *, every: int = 10, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    rows = [{"step": every * i, "eval/mean": v, "other": 1.0} for i, v in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if settings:
        own = {"task": "toy/dot", "size": "nano", "run": str(folder), **settings}
        (folder / "config.toml").write_text(dump(resolve(own)))
    return folder


def numbers_of(words: list[str], out: Path) -> Any:
    assert main([*words, "--out", str(out)]) == 0
    return json.loads(out.with_suffix(".json").read_text())


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


# ------------------------------------------------------------------------- means and intervals


def test_means_are_over_steps_that_all_seeds_have() -> None:
    long = (np.array([0.0, 10, 20, 30]), np.array([0.0, 2, 4, 100]))
    short = (np.array([0.0, 15, 20]), np.array([10.0, -5, 10]))
    found = group("x", [long, short])
    assert found.steps.tolist() == [0, 20]
    assert found.values.tolist() == [[0, 4], [10, 10]] and found.mean.tolist() == [5, 7]
    low, high = bootstrap_mean_interval(found.values)
    assert found.interval is not None and found.interval.low.tolist() == low.tolist()
    assert found.interval.high.tolist() == high.tolist() == [10, 10]


def test_one_seed_has_no_interval() -> None:
    steps, values = np.array([0.0, 10]), np.array([3.0, 4])
    alone, other = group("a", [(steps, values)]), group("b", [(steps, values + 1)] * 2)
    assert alone.interval is None and alone.mean.tolist() == [3, 4]
    found = compare(alone, other)["area"]
    assert (found["a"], found["b"], found["difference"]) == (3.5, 4.5, -1.0)
    assert found["low"] is found["high"] is None
    assert found["verdict"] == "no interval: only one seed"


def test_pairs_are_compared_where_both_have_all_seeds() -> None:
    steps = np.arange(4.0)
    a = group("a", [(steps, steps + 10 * seed) for seed in range(3)])
    b = group("b", [(2 * steps, 5.0 * steps + seed) for seed in range(4)])
    found = compare(a, b)
    assert (found["groups"], found["steps"]) == (["a", "b"], 2)
    assert (found["first_step"], found["last_step"]) == (0, 2)
    # at step 2: 2, 12, 22 against 5, 6, 7, 8; means over steps 0 and 2: 1, 11, 21, and 2.5 to 5.5
    for key, left, right in (
        ("at_last_step", [2.0, 12, 22], [5.0, 6, 7, 8]),
        ("area", [1.0, 11, 21], [2.5, 3.5, 4.5, 5.5]),
    ):
        difference, (low, high) = bootstrap_difference(np.array(left), np.array(right))
        assert found[key]["difference"] == pytest.approx(float(difference))
        assert (found[key]["low"], found[key]["high"]) == pytest.approx((low, high))
        assert (found[key]["a"], found[key]["b"]) == (np.mean(left), np.mean(right))
        assert found[key]["verdict"] == "interval contains 0"
    better = group("c", [(steps, steps + 100 + seed) for seed in range(3)])
    assert compare(better, b)["area"]["verdict"] == "interval does not contain 0"
    later = group("d", [(steps + 50, steps)])
    assert compare(a, later) == {"groups": ["a", "d"], "steps": 0}


def test_numbers_and_verdicts_of_groups_are_written_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [make_run(tmp_path / "good" / str(i), [0, 20 + i, 30 + i]) for i in range(3)]
    bad = [make_run(tmp_path / "bad" / str(i), [0, 2 + i], every=20) for i in range(3)]
    alone = make_run(tmp_path / "alone" / "0", [1.0, 2.0], every=7)
    words = [str(run) for run in (*good, *bad, alone)]
    numbers = numbers_of(words, tmp_path / "x.png")
    assert list(numbers["groups"]) == list(numbers["curves"]) == ["good", "bad", "alone"]
    assert numbers["groups"]["good"] == {
        "step": [0, 10, 20],
        "mean": [0, 21, 31],
        "low": [0, 20, 30],
        "high": [0, 22, 32],
        "seeds": [[0, 20 + i, 30 + i] for i in range(3)],
    }
    assert numbers["groups"]["alone"]["low"] is numbers["groups"]["alone"]["high"] is None
    assert numbers["interval"]["level"] == 0.95 and numbers["interval"]["resamples"] == 2_000
    assert [pair["groups"] for pair in numbers["pairs"]] == [
        ["good", "bad"],
        ["good", "alone"],
        ["bad", "alone"],
    ]
    shown = capsys.readouterr().out.splitlines()
    assert "good (n=3), step 20: 31 [30, 32]" in shown
    pair = numbers["pairs"][0]["at_last_step"]
    bounds = f"[{pair['low']:.4g}, {pair['high']:.4g}]"
    assert f"good minus bad, step 20: 28 {bounds}, interval does not contain 0" in shown
    assert "good minus alone, step 0: -1, no interval: only one seed" in shown
    assert any("95 % percentile bootstrap over seeds (2,000 samples" in line for line in shown)
    numbers_again = numbers_of([*reversed(words[:3]), *words[3:]], tmp_path / "y.png")
    assert numbers_again["pairs"] == numbers["pairs"]


def test_pairs_without_a_common_step_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path / "a" / "0", [1.0]), make_run(tmp_path / "b" / "0", [1.0, 2.0])
    (b / "metrics.jsonl").write_text('{"step": 7, "eval/mean": 1.0}\n')
    assert numbers_of([str(a), str(b)], tmp_path / "x.png")["pairs"][0]["steps"] == 0
    assert "a minus b: not compared, no step in common" in capsys.readouterr().out


def test_the_interval_is_drawn(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "x" / str(i), [i, 10.0 * i, 0]) for i in range(3)]
    pictures = []
    for words in ([f"x={runs[1]}"], [f"x={','.join(map(str, runs))}"]):
        numbers_of(words, tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    # C0 at 15 % on white
    shade = np.abs(pictures[1].astype(int) - [221, 235, 244]).max(-1) <= 6
    assert shade.mean() > 0.1
    assert (np.abs(pictures[0].astype(int) - [221, 235, 244]).max(-1) <= 6).mean() < 0.01


def test_of_equal_steps_the_last_counts_and_only_finite_values_do(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "x": 1.0}\n{"step": 2, "x": "nan"}\n{"step": 3, "x": 3}\n{"step": 1, "x": 9}\n'
    )
    steps, values = curve(tmp_path, "x")
    assert steps.tolist() == [1, 3] and values.tolist() == [9, 3]


# ------------------------------------------------------------------------------------- groups


def test_runs_of_one_folder_and_equal_settings_are_one_group(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, [1.0], agent=agent, seed=seed)
        for name, agent, seed in (
            ("a", "mudreamer", 0),
            ("b", "dreamerv3", 0),
            ("c", "mudreamer", 1),
        )
    ]
    found = parse([str(run) for run in runs])
    assert found == {"mudreamer": [runs[0], runs[2]], "dreamerv3": [runs[1]]}


def test_labels_grow_until_they_are_unique(tmp_path: Path) -> None:
    def runs(folder: str, **settings: Any) -> Path:
        return make_run(tmp_path / folder / "0", [1.0], agent="mudreamer", **settings)

    words = {
        "mudreamer-XS": runs("a", size="XS"),
        "toy/dot/mudreamer-nano": runs("b"),
        "toy/chain/mudreamer-nano": runs("c", task="toy/chain"),
    }
    assert parse([str(run) for run in words.values()]) == {k: [v] for k, v in words.items()}
    assert list(parse([str(runs("d", size="S"))])) == ["mudreamer"]
    hashed = runs("e", size="XS", train={"steps": 7_777})
    label, _ = parse([str(hashed), str(words["mudreamer-XS"])])
    assert label.startswith("mudreamer-XS-") and len(label) == len("mudreamer-XS-") + 8
    twin = runs("f", size="XS")
    assert list(parse([str(twin), str(words["mudreamer-XS"])])) == [
        f"toy/dot/mudreamer-XS in {tmp_path / name}" for name in "fa"
    ]
    assert list(parse([f"mudreamer={twin}", str(hashed)])) == ["mudreamer", label]


def test_without_settings_the_folder_is_the_group(tmp_path: Path) -> None:
    a, b, c = (make_run(tmp_path / name, [1.0]) for name in ("x/spr-S/0", "x/spr-S/1", "y/spr-S/0"))
    (a / "config.toml").write_text("from = 'another version'")
    assert parse([str(a), str(b)]) == {"spr-S": [a, b]}
    assert list(parse([str(a), str(c)])) == [str(a.parent), str(c.parent)]


def test_a_label_may_be_given_twice_and_a_path_hold_an_equals_sign(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", [1.0]), make_run(tmp_path / "lr=1" / "0", [1.0])
    assert parse([f"x={a}", str(b), f"x={b}"]) == {"x": [a, b], "lr=1": [b]}


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nolabel"], "LABEL=RUN"),
        (["x=/nowhere"], "no metrics.jsonl"),
        (["/nowhere"], "no metrics.jsonl"),
        (["x="], "LABEL=RUN"),
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


def test_an_unknown_metric_is_told_with_the_nearest_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [1.0])
    with pytest.raises(ConfigError) as caught:
        curve(run, "evl/mean")
    assert caught.value.problems == [
        f"{run} has no metric 'evl/mean'; nearest are eval/mean, other; its metrics.jsonl lists all"
    ]
    with pytest.raises(ConfigError, match=r"no metric 'nosuch/tag'; nearest are .*eval/mean"):
        curve(run, "nosuch/tag", until=5.0)


def test_a_metric_that_comes_later_or_never_finite_is_not_called_unknown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [1.0])
    (run / "metrics.jsonl").write_text('{"step": 7, "x": 1.0, "y": "nan"}\n')
    with pytest.raises(ConfigError, match=r"has no finite value of 'x' up to step 5$"):
        curve(run, "x", until=5.0)
    with pytest.raises(ConfigError, match=r"has no finite value of 'y'$"):
        curve(run, "y")


@pytest.mark.parametrize("label", ["", "ours="])
def test_a_seed_counts_once(label: str, tmp_path: Path) -> None:
    one, two, other = (
        make_run(tmp_path / name, [1.0, 2.0], agent="mudreamer", seed=seed)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    words = [f"{label}{run}" for run in (one, other, two)]
    with pytest.raises(ConfigError) as caught:
        main([*words, "--out", str(tmp_path / "x.png")])
    (told,) = caught.value.problems
    group = label[:-1] or "mudreamer"
    assert told.startswith(f"{two}: seed 0 of {group} on toy/dot is that of {one} already; every")
    assert not (tmp_path / "x.png").exists()
    assert list(parse([f"a={one}", f"b={two}"])) == ["a", "b"]
    assert len(parse(words[:2])) == 1


def test_a_label_may_join_other_settings_and_tasks_of_one_seed(tmp_path: Path) -> None:
    settings = ({}, {"task": "toy/chain"}, {"size": "XS"}, {"agent": "dreamerv3"})
    runs = [make_run(tmp_path / str(i), [1.0], seed=0, **own) for i, own in enumerate(settings)]
    assert parse([f"all={run}" for run in runs]) == {"all": runs}


def test_a_run_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [1.0])
    with pytest.raises(ConfigError, match="named twice"):
        parse([f"a={run},{run.parent / 'a' / '..' / 'a'}"])


def test_seeds_without_a_common_step_are_refused(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", [1.0]), make_run(tmp_path / "b", [1.0])
    (b / "metrics.jsonl").write_text('{"step": 7, "eval/mean": 1.0}\n')
    with pytest.raises(ConfigError, match="'x' have no step in common"):
        main([f"x={a},{b}", "--out", str(tmp_path / "x.png")])
