"""What is reported on: which runs are found, left out, and refused with the runs at fault."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from report_runs import edit, make_grid, make_run, set_state

from reverie.agents.configs import ConfigError
from reverie.benchmarks.report.collect import collect, gather
from reverie.benchmarks.report.places import find

TASKS = ("toy/catch", "toy/dot")
TWO = {(label, task): [1.0, 2.0] for label in ("ours", "rainbow") for task in TASKS}


def problems(*paths: Path, **options: bool) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        collect(paths, **options)
    return caught.value.problems


# what is found


def test_cells_of_a_grid_are_called_by_their_arms(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", TWO)
    study = collect([grid])
    assert {r.label for r in study.results} == {"ours", "rainbow"} and len(study.results) == 8
    assert study.groups() == ["toy"] and study.tasks("toy") == ["toy/catch", "toy/dot"]
    first = study.of("ours", "toy/catch")
    assert [(r.seed, r.score, r.seconds) for r in first] == [(0, 1.0, 61.0), (1, 2.0, 61.0)]
    assert first[0].name == "runs/toy/catch/ours/0" and first[0].metric == "return"
    steps, values = first[1].curve
    assert values.tolist() == [1.0, 2.0] and steps[0] == steps[1] // 2
    assert not study.unfinished and not study.notes


def test_runs_of_a_folder_are_called_by_agent_size_and_hash(tmp_path: Path) -> None:
    make_run(tmp_path / "x" / "a", 1.0)
    make_run(tmp_path / "x" / "deep" / "b", 2.0, agent="rainbow", spr={"optim": {"lr": 2e-4}})
    labels = [r.label for r in collect([tmp_path]).results]
    assert labels[0] == "spr-S" and re.fullmatch(r"rainbow-S-[0-9a-f]{8}", labels[1])
    alone = collect([tmp_path / "x" / "a"]).results[0]
    assert (alone.label, alone.name, alone.seconds) == ("spr-S", "a", 90.0)


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", {("ours", "toy/catch"): [1.0, 2.0]})
    assert len(collect([grid, grid / "runs", grid]).results) == 2
    assert {r.label for r in collect([grid, grid / "runs"]).results} == {"ours"}


def test_tasks_with_a_distractor_are_groups_of_their_own_with_all_evaluations(
    tmp_path: Path,
) -> None:
    others = {"train": {"mean": 300.0}, "clean": {"mean": 900.0}, "broken": {"mean": None}}
    run = make_run(
        tmp_path / "a",
        200.0,
        task="dmc/walker_walk",
        agent="mudreamer",
        env={"distractor": "dreamerpro"},
        evaluation={"others": others},
        status={"evaluations": {"late": {"mean": 5.0}}},
    )
    (result,) = collect([run]).results
    assert (result.task, result.group) == ("dmc/walker_walk+dreamerpro", "dmc+dreamerpro")
    assert result.views == {"train": 300.0, "clean": 900.0, "late": 5.0}


def test_success_is_the_score_of_meta_world(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 0.75, task="metaworld/reach-v3", agent="mudreamer")
    edit(
        run / "status.json",
        evaluation=json.loads((run / "status.json").read_text())["evaluation"] | {"mean": 812.0},
    )
    (result,) = collect([run]).results
    assert (result.score, result.metric, result.group) == (0.75, "success", "metaworld")


# what is left out


def test_unfinished_runs_are_listed_and_left_out(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", {("ours", "toy/catch"): [1.0] * 6})
    run = grid / "runs/toy/catch/ours"
    name = "ours--toy-catch--{}".format
    edit(run / "1" / "status.json", state="failed", reason="from the run")
    set_state(grid, name(1), state="failed", reason="out of memory")
    edit(run / "2" / "status.json", state="preempted")
    set_state(grid, name(2), state="interrupted")
    shutil.rmtree(run / "3")
    (grid / "cells" / name(3) / "state.json").unlink()
    shutil.rmtree(run / "4")
    set_state(grid, name(4), state="failed", reason="no such game")
    study = collect([grid])
    assert [r.seed for r in study.results] == [0, 5]
    assert [(u.seed, u.state, u.reason) for u in study.unfinished] == [
        (1, "failed", "out of memory"),
        (2, "interrupted", ""),
        (3, "waiting", ""),
        (4, "failed", "no such game"),
    ]
    assert {u.label for u in study.unfinished} == {"ours"}


def test_without_leaves_out_runs_and_folders(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", TWO)
    study = collect([grid], without=[grid / "runs/toy/dot"])
    assert study.tasks("toy") == ["toy/catch"] and str(grid / "runs/toy/dot") in study.notes[0]


def test_nothing_finished_is_an_error_that_says_how_each_run_stands(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", 1.0, status={"state": "failed", "reason": "ValueError: x"})
    b = make_run(tmp_path / "b", 1.0, status={"state": "running"})
    (problem,) = problems(a, b)
    assert problem == (
        "expected finished runs, found none: a is failed (ValueError: x); b is running"
    )


def test_what_holds_no_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "episodes.jsonl"
    file.write_text('{"score": 1.0}\n')
    found = problems(tmp_path / "empty", file, tmp_path / "gone")
    assert "expected a grid of `reverie bench run`, a run directory" in found[0]
    assert "expected a directory, found a file; episodes" in found[1]
    assert "expected a directory, found nothing" in found[2]
    assert problems() == ["expected at least one DIR"]


# what must agree


@pytest.mark.parametrize(
    ("settings", "term"),
    [
        ({"protocol": "sticky=0.25,noops=0-29"}, "protocol"),
        ({"train": {"steps": 50_000}}, "budget"),
        ({"train": {"final_episodes": 10}}, "episodes"),
        ({"env": {"action_repeat": 2}}, "action repeat"),
        ({"env": {"time_limit": 100}}, "time limit"),
    ],
)
def test_mixed_protocols_and_budgets_of_a_task_are_refused(
    settings: dict[str, object], term: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "a", 1.0, task="atari/pong")
    make_run(tmp_path / "b", 1.0, task="atari/pong", agent="rainbow", **settings)
    found = problems(tmp_path)
    assert found[0].startswith(f"atari/pong: mixed {term}")
    assert str(tmp_path / "a") in found[0] and str(tmp_path / "b") in found[0]


def test_updates_are_no_agent_steps(tmp_path: Path) -> None:
    steps = {"train": {"steps": 5_000, "eval_episodes": 10}}
    make_run(tmp_path / "a", 1.0, task="metaworld/reach-v3", agent="mudreamer", **steps)
    make_run(tmp_path / "b", 1.0, task="metaworld/reach-v3", agent="act", **steps)
    assert (
        "5,000 agent steps in" in problems(tmp_path)[0] and "5,000 updates" in problems(tmp_path)[0]
    )


def test_agents_may_look_at_other_views_of_a_game(tmp_path: Path) -> None:
    shared = "sticky=0,noops=0-29,actions=minimal,lives=unused"
    make_run(tmp_path / "a", 1.0, task="atari/pong", protocol=f"{shared},view=84x84 gray")
    make_run(
        tmp_path / "b",
        1.0,
        task="atari/pong",
        agent="mudreamer",
        protocol=f"{shared},view=64x64 rgb",
    )
    assert [r.protocol[-9:] for r in collect([tmp_path]).results] == ["4x84 gray", "64x64 rgb"]


def test_one_label_has_one_set_of_settings(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", {("ours", "toy/catch"): [1.0]})
    other = make_grid(
        tmp_path / "other", {("ours", "toy/catch"): [1.0, 2.0]}, spr={"optim": {"lr": 2e-4}}
    )
    shutil.rmtree(other / "runs/toy/catch/ours/0")
    (problem,) = problems(grid, other)
    assert problem.startswith("ours on toy/catch: ") and "(spr.optim.lr)" in problem
    quick = make_grid(
        tmp_path / "quick",
        {("ours", "toy/catch"): [1.0, 2.0]},
        train={"device": "cpu", "threads": 2},
    )
    shutil.rmtree(quick / "runs/toy/catch/ours/0")
    assert [r.seed for r in collect([grid, quick]).results] == [0, 1]


def test_a_seed_counts_once_so_that_episodes_are_no_runs(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", 1.0, seed=3), make_run(tmp_path / "b", 2.0, seed=3)
    (problem,) = problems(a, b)
    assert problem.startswith(f"{b}: seed 3 of spr-S on toy/catch is that of {a} already")
    assert "its episodes are averaged before" in problem


# ragged seeds


def ragged(tmp_path: Path) -> Path:
    grid = make_grid(tmp_path / "grid", TWO)
    edit(grid / "runs/toy/dot/ours/1/status.json", state="running")
    return grid


def test_ragged_seeds_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    (problem,) = problems(ragged(tmp_path))
    assert "missing are ours on toy/dot, seed 1. Finish them" in problem
    assert "--common-seeds" in problem


def test_common_seeds_cut_each_label_to_what_it_has_of_all_tasks(tmp_path: Path) -> None:
    study = collect([ragged(tmp_path)], common_seeds=True)
    found = sorted((r.label, r.task, r.seed) for r in study.results)
    assert [(task, seed) for label, task, seed in found if label == "ours"] == [
        ("toy/catch", 0),
        ("toy/dot", 0),
    ]
    assert len([one for one in found if one[0] == "rainbow"]) == 4
    assert study.notes == ["toy: cut to common seeds, 1 finished runs left out"]


def test_common_seeds_drop_tasks_that_a_label_lacks(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", TWO)
    for seed in (0, 1):
        shutil.rmtree(grid / f"runs/toy/dot/ours/{seed}")
    assert "ours on toy/dot, seeds 0, 1" in problems(grid)[0]
    study = collect([grid], common_seeds=True)
    assert study.tasks("toy") == ["toy/catch"] and len(study.results) == 4
    assert study.notes[0].endswith("left out; of all tasks, those that some label lacks: toy/dot")


def test_seeds_without_a_common_one_cannot_be_cut(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 1.0, seed=0)
    make_run(tmp_path / "b", 1.0, seed=1, task="toy/dot", env={"image_size": 84})
    assert problems(tmp_path, common_seeds=True) == [
        "toy: spr-S has no seed of all tasks that the others have"
    ]


# damage


def broken_line(run: Path) -> None:
    file = run / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"loss/q"', b'\xff"loss'))


def other_value(run: Path) -> None:
    file = run / "metrics.jsonl"
    file.write_text(file.read_text().replace('"eval/mean": 3.0', '"eval/mean": 7.0'))


def lost_row(run: Path) -> None:
    file = run / "metrics.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")


def set_mean(value: object) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        record = json.loads((run / "status.json").read_text())
        record["evaluation"]["mean"] = value
        (run / "status.json").write_text(json.dumps(record))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_line, "metrics.jsonl is corrupt: line 1 of 2 is no JSON record"),
        (other_value, "status.json says eval/mean 3 at step .*, metrics.jsonl says 7"),
        (lost_row, "metrics.jsonl says nothing: one of them is corrupt"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl cannot be read"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "holds no finite eval/mean"),
        (lambda run: (run / "config.toml").write_text("x = 1"), "config.toml: x: unknown setting"),
        (set_mean(None), "expected a finite mean in its evaluation, found None"),
        (set_mean(float("nan")), "expected a finite mean in its evaluation, found nan"),
        (
            lambda run: edit(run / "status.json", evaluation={"mean": 3.0, "step": 7}),
            "expected a final evaluation at step .*, found one at step 7",
        ),
        (lambda run: edit(run / "status.json", evaluation=[3.0]), "expected a finite mean"),
    ],
)
def test_a_damaged_run_is_refused_with_the_damage_and_the_remedy(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    good, bad = make_run(tmp_path / "good", 3.0), make_run(tmp_path / "bad", 3.0, seed=1)
    damage(bad)
    (problem,) = problems(good, bad)
    assert problem.startswith(f"{bad}: ") and re.search(message, problem), problem
    assert "--without" in problem or "config.toml" in problem
    assert len(collect([tmp_path], without=[bad]).results) == 1


def test_a_damaged_grid_is_refused(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", {("ours", "toy/catch"): [1.0]})
    edit(grid / "grid.json", schema=2)
    assert "expected schema 1, found 2" in problems(grid)[0]
    (grid / "grid.json").write_text("{")
    assert "grid.json cannot be read" in problems(grid)[0]
    faults: list[str] = []
    assert find([grid], faults) == [] and len(faults) == 1


def test_a_run_that_is_not_what_its_grid_planned_is_refused(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", {("ours", "toy/catch"): [1.0, 2.0]})
    shutil.rmtree(grid / "runs/toy/catch/ours/1")
    shutil.copytree(grid / "runs/toy/catch/ours/0", grid / "runs/toy/catch/ours/1")
    (problem,) = problems(grid)
    assert "expected seed 1 of toy/catch as grid.json says, found seed 0 of toy/catch" in problem


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), 1.0, seed=seed) for seed in range(3)]
    for run in runs[:2]:
        (run / "metrics.jsonl").unlink()
    assert len(problems(*runs, tmp_path / "gone")) == 3
    assert len(gather(runs[2:]).results) == 1
