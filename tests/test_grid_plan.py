"""Which cells a suite has, what may be asked for, and how a grid grows."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from children import environment

from reverie.agents.configs import ConfigError
from reverie.agents.flags import config_from_args
from reverie.agents.registry import AGENTS
from reverie.benchmarks import cli, reference
from reverie.benchmarks.grid.cells import GRID, Grid, extend_grid, open_grid, plan
from reverie.benchmarks.grid.suites import lay_flags, load_suite, suite_names, unknown

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", suite_names())
def test_every_packaged_suite_plans_runs_that_resolve(name: str) -> None:
    suite = load_suite(name)
    cells = plan(suite, agents=tuple(suite.arms))
    assert len(cells) == len(suite.tasks) * len(suite.arms) * suite.seeds
    assert len({cell.id for cell in cells}) == len({cell.run for cell in cells}) == len(cells)
    for cell in cells[:: max(1, len(cells) // 20)]:
        cfg = config_from_args(cell.words)
        assert (cfg.task, cfg.seed) == (cell.task, cell.seed)
        assert cell.run == f"runs/{cell.task}/{cell.arm}/{cell.seed}"
        assert re.fullmatch(r"[\w.+-]+", cell.id)


def test_suites_hold_the_tasks_of_the_published_tables() -> None:
    assert list(load_suite("atari100k").tasks) == [game.task for game in reference.games()]
    for suite, file in (("dmc", "dmc_vision"), ("dmc_distracted", "dmc_background")):
        published = {row["task"] for row in reference.rows(f"{file}_scores.csv")}
        names = {"_".join(task.lower().split()) for task in published}
        ours = {
            task.removeprefix("dmc/").replace("ball_in_cup", "cup")
            for task in load_suite(suite).tasks
        }
        assert ours == names


def test_budgets_sizes_and_distractors_are_those_of_the_tables() -> None:
    atari = config_from_args(plan(load_suite("atari100k"))[0].words)
    assert (atari.agent, atari.train.steps, atari.size) == ("spr", 100_000, "S")
    assert atari.train.final_episodes == 100
    clean = config_from_args(plan(load_suite("dmc"))[0].words)
    assert (clean.agent, clean.train.steps, clean.env.action_repeat) == ("mudreamer", 500_000, 2)
    loud = config_from_args(plan(load_suite("dmc_distracted"))[0].words)
    assert loud == dataclasses.replace(
        clean, task=loud.task, env=dataclasses.replace(clean.env, distractor="dreamerpro")
    )


def test_seeds_come_first_so_that_a_stopped_grid_has_whole_tables() -> None:
    cells = plan(load_suite("smoke"), agents=("spr", "bbf"), seeds=2)
    assert [cell.id for cell in cells[:4]] == [
        f"{arm}--toy-{task}--0" for task in ("catch", "identity") for arm in ("spr", "bbf")
    ]
    assert {cell.seed for cell in cells[4:]} == {1}


def test_imitation_cells_share_one_preparation() -> None:
    cells = plan(load_suite("metaworld"), seeds=2)
    assert {cell.prepare[:2] for cell in cells} == {("demos", "make")}
    assert len({cell.prepare for cell in cells}) == 1
    assert not any(cell.prepare for cell in plan(load_suite("smoke")))


def test_later_flags_replace_earlier_ones() -> None:
    suite = load_suite("atari100k")
    asked = ("train.steps=5000", "size=nano", "spr.optim.clip=1")
    cfg = config_from_args(plan(suite, tasks=("pong",), settings=asked)[0].words)
    assert (cfg.task, cfg.train.steps, cfg.size, cfg.spr.optim.clip) == (
        "atari/pong",
        5000,
        "nano",
        1,
    )
    laid = lay_flags(("--a", "1", "--b-c", "2"), ("--b_c=3",), ("--d", "4", "5"))
    assert laid == ("--a", "1", "--b_c=3", "--d", "4", "5")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["smokey"], "did you mean smoke?"),
        (["smoke", "--agents", "mudremer"], "did you mean mudreamer?"),
        (["smoke", "--tasks", "toy/cetch"], "did you mean toy/catch?"),
        (["smoke", "--tasks", "cetch"], "did you mean catch?"),
        (["atari100k", "--tasks", "atari/pnog"], "did you mean atari/pong?"),
        (["smoke", "--settings", "train.steps"], "expected NAME=VALUE"),
        (["smoke", "--settings", "train.stesp=4"], "did you mean train.steps?"),
        (["smoke", "--seeds", "0"], "1 or more, found 0"),
        (["smoke", "--jobs", "0"], "--jobs: expected 1 or more"),
        (["smoke", "--retries", "-1"], "--retries: expected 0 or more"),
        ([], "expected a suite"),
    ],
)
def test_fault_24_wrong_names_are_one_error_with_a_suggestion(
    words: list[str], told: str, tmp_path: Path, capsys: Capture
) -> None:
    assert cli.main(["bench", "run", *words, "--out", str(tmp_path / "g")]) == 2
    shown = capsys.readouterr().err
    assert told in shown and "Traceback" not in shown
    assert shown.count("reverie: ") == 1


def test_all_wrong_names_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(load_suite("smoke"), agents=("sprr",), tasks=("toy/dto",), seeds=0)
    assert len(caught.value.problems) == 3


def test_tasks_beyond_the_suite_are_taken() -> None:
    cells = plan(load_suite("smoke"), agents=("mudreamer",), tasks=("toy/dot", "catch"), seeds=1)
    assert [cell.task for cell in cells] == ["toy/dot", "toy/catch"]


@pytest.mark.atari
def test_games_that_are_not_listed_are_asked_of_the_emulator() -> None:
    cells = plan(load_suite("atari100k"), tasks=("atari/gravitar",), seeds=1)
    assert cells[0].task == "atari/gravitar"


def test_a_grid_grows_and_keeps_the_numbers_of_its_cells(tmp_path: Path) -> None:
    suite = load_suite("smoke")
    first = plan(suite, agents=("spr",), seeds=1)
    grid = extend_grid(tmp_path, suite.name, first)
    more = plan(suite, agents=("rainbow", "spr"), seeds=2)
    grown = extend_grid(tmp_path, suite.name, more)
    assert grown.cells[: len(first)] == grid.cells and set(grown.cells) == set(more)
    assert open_grid(tmp_path) == grown
    before = (tmp_path / GRID).stat().st_mtime_ns
    assert extend_grid(tmp_path, suite.name, more) == grown
    assert (tmp_path / GRID).stat().st_mtime_ns == before
    assert grown.cell("0") == grown.cells[0] == grown.cell(grown.cells[0].id)


def test_the_same_cell_with_other_words_is_an_error(tmp_path: Path) -> None:
    suite = load_suite("smoke")
    extend_grid(tmp_path, suite.name, plan(suite, agents=("spr",)))
    before = (tmp_path / GRID).read_bytes()
    with pytest.raises(ConfigError, match="choose another --out") as caught:
        extend_grid(
            tmp_path, suite.name, plan(suite, agents=("spr",), settings=("train.steps=90",))
        )
    assert "spr--toy-catch--0: the grid" in str(caught.value)
    with pytest.raises(ConfigError, match="expected a grid of dmc, found one of smoke"):
        extend_grid(tmp_path, "dmc", ())
    assert (tmp_path / GRID).read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"schema": 1, "suite": "x", "cells": [{"id": 1}]}', b"\xff"]
)
def test_fault_07_a_damaged_grid_file_says_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / GRID).write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be read.*delete it"):
        open_grid(tmp_path)


def test_grids_of_later_versions_and_missing_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"with grid\.json, found none"):
        open_grid(tmp_path)
    (tmp_path / GRID).write_text(json.dumps({"schema": 2, "suite": "x", "cells": []}))
    with pytest.raises(ConfigError, match="expected schema 1, found 2"):
        open_grid(tmp_path)
    grid = Grid(tmp_path, "smoke", tuple(plan(load_suite("smoke"))))
    with pytest.raises(ConfigError, match="or a number below 16, found '16'"):
        grid.cell("16")
    with pytest.raises(ConfigError, match="did you mean spr--toy-catch--0"):
        grid.cell("spr--toy-cacth--0")


OWN = """
summary = "mine"
tasks = ["toy/dot"]
seeds = 3
settings = ["--config", "debug"]
[arms]
deep = ["mudreamer", "--mudreamer.model.layers", "2"]
"""


def test_a_suite_of_your_own_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN)
    suite = load_suite(str(tmp_path / "mine.toml"))
    cells = plan(suite)
    assert suite.name == "mine" and cells[0].id == "deep--toy-dot--0"
    assert config_from_args(cells[0].words).mudreamer.model.layers == 2 and len(cells) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("seeds = 3", "seeds = 0"), "seeds: expected a number of runs"),
        (("seeds = 3", "sedes = 3"), "did you mean seeds?"),
        (('["toy/dot"]', "[]"), "tasks: expected a list"),
        (('["mudreamer"', '["mudremer"'), unknown("arms.deep", "mudremer", AGENTS)),
        (('["mudreamer"', '["mudremer"'), "did you mean mudreamer?"),
        (('["mudreamer", ', "[3, "), "arms.deep: expected an agent and its flags"),
        (("deep =", '"a/b" ='), "arms: expected letters"),
        (("[arms]", 'default = ["dep"]\n[arms]'), "did you mean deep?"),
        (("summary =", "summary "), "cannot be read"),
        (("[arms]\n", ""), "arms: expected a table"),
    ],
)
def test_a_wrong_suite_file_says_where(change: tuple[str, str], told: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN.replace(*change))
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_suite(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("task", "near"),
    [
        ("toy/nosuch", "; did you mean toy/ones?"),
        ("metaworld/sixx", "; did you mean metaworld/six?"),
        pytest.param("atari/pnog", "; did you mean atari/pong?", marks=pytest.mark.atari),
        ("", ""),
    ],
)
def test_a_misspelt_task_of_a_suite_file_is_refused_before_anything_starts(
    task: str, near: str, tmp_path: Path, capsys: Capture
) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "g"
    told = f"found {task!r}{near}\n"
    file.write_text(OWN.replace('["toy/dot"]', f'["{task}", "toy/home"]'))
    words = ["bench", "run", str(file), "--plan", "--out", str(out)]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.endswith(f"tasks that `reverie tasks` lists, {told}")
    file.write_text(OWN)
    assert cli.main([*words, "--tasks", task]) == 2
    assert capsys.readouterr().err.endswith(f"or others that `reverie tasks` lists, {told}")
    assert not out.exists()


def test_tasks_of_a_suite_file_need_no_package_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("metaworld", "dm_control", "ale_py"):
        monkeypatch.setitem(sys.modules, package, None)
    names = ("metaworld/reach", "metaworld/six", "gym/NoSuch-v0", "gym/mine:Maze-v0", "atari/pong")
    tasks = [*names, "dmc/walker_walk", "torch/dots"]
    (tmp_path / "mine.toml").write_text(OWN.replace('["toy/dot"]', json.dumps(tasks)))
    suite = load_suite(str(tmp_path / "mine.toml"))
    assert list(suite.tasks) == [cell.task for cell in plan(suite, seeds=1)] == tasks


@pytest.mark.atari
def test_a_suite_file_may_have_games_that_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN.replace("toy/dot", "atari/gravitar"))
    assert load_suite(str(tmp_path / "mine.toml")).tasks == ("atari/gravitar",)


def test_lists_and_dry_runs_write_nothing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "run", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in suite_names())
    assert cli.main(["bench", "run", "metaworld", "--dry-run", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "waiting  bc--metaworld-six--0  reverie train bc" in shown
    assert shown.count("before: reverie demos make --task metaworld/six") == 1
    assert "3 cells in grids/metaworld" in shown and not list(tmp_path.iterdir())


def test_a_planned_grid_tells_how_to_run_its_cells(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "g"
    assert cli.main(["bench", "run", "smoke", "--plan", "--out", str(out)]) == 0
    assert "NUMBER, 0 to 15" in capsys.readouterr().out
    assert len(open_grid(out).cells) == 16 and not (out / "runs").exists()


def test_driver_and_array_tasks_start_without_torch() -> None:
    """A driver lives for days beside runs that need the memory; hundreds of tasks start at once."""
    code = (
        "import sys, reverie.benchmarks.grid.command; assert 'torch' not in sys.modules;"
        "from reverie.benchmarks.grid import cells, suites;"
        "cells.plan(suites.load_suite('atari100k')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), timeout=120)
