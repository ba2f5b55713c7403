"""Published scores beside ours: recomputation, and what the warnings keep apart."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from report_runs import make_grid

from reverie.agents.configs import ConfigError
from reverie.benchmarks import reference
from reverie.benchmarks.reference import games, method_scores, rows
from reverie.benchmarks.report.aggregate import Summary, summarise
from reverie.benchmarks.report.collect import collect
from reverie.benchmarks.report.published import (
    KNOWN,
    MAIN,
    Comparison,
    agrees,
    published,
    recompute,
    warnings,
)
from reverie.benchmarks.report.sections import document

NOT_BESIDE_OURS = ("DreamerV3 v1", "DreamerV3 2024", "DreamerV3 Nature", "STORM", "EfficientZero")


def summary(path: Path, tasks: tuple[str, ...], **settings: object) -> Summary:
    agent = "mudreamer" if tasks[0].startswith("dmc") else "spr"
    scores = {(agent, task): [100.0, 200.0] for task in tasks}
    study = collect([make_grid(path / "grid", scores, **settings)])
    return summarise(study, study.groups()[0])


def beside(path: Path, tasks: tuple[str, ...], **settings: object) -> Comparison:
    found = published(summary(path, tasks, **settings))
    assert found is not None
    return found


# recomputation


def test_every_printed_aggregate_is_recomputed_but_for_the_known_exceptions() -> None:
    checks = recompute()
    assert len(checks) == 46, "mean and median of 21 methods, IQM and gap of two"
    odd = {(c.method, c.statistic): c for c in checks if not c.agrees}
    v1 = "DreamerV3 v1 (arXiv 2023)"
    assert set(odd) == {(v1, "mean"), (v1, "median")}
    assert odd[v1, "mean"].recomputed == pytest.approx(1.130, abs=5e-4)
    assert odd[v1, "median"].recomputed == pytest.approx(0.560, abs=5e-4)
    assert {(c.method, c.statistic) for c in checks if c.reason} == set(KNOWN)
    (spr,) = [c for c in checks if (c.method, c.statistic) == ("SPR (paper)", "mean")]
    assert f"{spr.recomputed:.3f}" == "0.703" and spr.printed == "0.704"


@pytest.mark.parametrize(
    ("value", "printed", "want"),
    [
        (0.6155, "0.616", True),
        (0.6149, "0.616", False),
        (0.6169, "0.616", True),
        (1.1249, "1.12", True),
        (1.126, "1.12", False),
        (1.1296, "1.12", False),
    ],
)
def test_agreement_is_to_a_thousandth_or_to_the_digits_printed(
    value: float, printed: str, want: bool
) -> None:
    assert agrees(value, printed) is want


def test_missing_files_of_published_scores_are_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"published scores cannot be read.*reinstall"):
        recompute()


# the rules are about something


def test_every_rule_is_about_methods_that_exist() -> None:
    files = {
        "atari": ("atari100k_aggregates.csv", "atari100k_scores.csv"),
        "dmc": ("dmc_aggregates.csv", "dmc_vision_scores.csv"),
        "dmc+background": ("dmc_aggregates.csv", "dmc_background_scores.csv"),
    }
    count = 0
    for setting, names in files.items():
        known = {row["method"] for name in names for row in rows(name)}
        for rule in warnings(setting):
            count += 1
            for pattern in rule.methods:
                assert any(fnmatchcase(name, pattern) for name in known), pattern
            assert set(rule.omit) <= {"mean", "median", "iqm", "optimality_gap", "games"}
    assert count == len(rows("do_not_compare.csv"))


def test_every_protocol_is_that_of_a_known_method() -> None:
    known = [row["method"] for row in rows("atari100k_aggregates.csv")]
    for row in rows("atari100k_protocols.csv"):
        assert any(name.startswith(row["method"]) for name in known), row["method"]
        assert all(row.values())


# Atari


@pytest.fixture(scope="module")
def atari(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    tasks = tuple(one.task for one in games())
    return beside(tmp_path_factory.mktemp("atari"), tasks)


def test_what_the_warnings_forbid_is_never_in_the_table_of_ours(atari: Comparison) -> None:
    assert atari.complete and atari.reasons == []
    main = [method.name for method in atari.tables()[MAIN]]
    assert "SPR (rliable 100 runs)" in main and "DIAMOND" in main and "Simulus" in main
    assert not [name for name in main if name.startswith(NOT_BESIDE_OURS)]
    apart = {m.name: heading for heading, ms in atari.tables().items() for m in ms if heading}
    assert apart["DreamerV3 2024 (released runs)"] == "Returns of training episodes"
    assert apart["STORM (paper)"].startswith("Sticky actions")
    assert apart["EfficientZero"] == "No bar to measure against"
    assert "DreamerV3-PyTorch (burchim)" in main


def test_statistics_that_mean_something_else_are_not_shown(atari: Comparison) -> None:
    shown = {method.name: method.statistics for method in atari.methods}
    for name in ("MuZero (EfficientZero re-implementation)", "EfficientZero"):
        assert shown[name]["iqm"] == shown[name]["optimality_gap"] == ""
        assert shown[name]["mean"] and shown[name]["median"]
    assert shown["SPR (rliable 100 runs)"] == {
        "mean": "0.616",
        "median": "0.396",
        "iqm": "0.337",
        "optimality_gap": "0.577",
    }
    third = next(m for m in atari.methods if m.name == "MuDreamer (third-party table)")
    assert third.statistics["median"] == "" and third.scores == {} and third.table


def test_protocols_and_warnings_are_said(atari: Comparison) -> None:
    terms = {method.name: method.protocol for method in atari.methods}
    assert terms["STORM (paper)"]["sticky"] == "0.25"
    assert "training episodes" in terms["DreamerV3 2024 (released runs)"]["evaluation"]
    assert terms["DreamerV3-PyTorch (burchim)"] == {} == terms["Delta-IRIS"]
    assert any("not over runs x games" in text for text in atari.warnings)
    assert len(atari.warnings) == len(warnings("atari")) - 1, "all but that of an ablation"


def test_of_fewer_games_means_are_recomputed_and_an_iqm_is_never_made(tmp_path: Path) -> None:
    found = beside(tmp_path, ("atari/pong", "atari/boxing"))
    assert not found.complete
    spr = next(m for m in found.methods if m.name == "SPR (rliable 100 runs)")
    known = method_scores("SPR (rliable 100 runs)")
    want = ((known["atari/pong"] + 20.7) / 35.3 + (known["atari/boxing"] - 0.1) / 12.0) / 2
    assert spr.statistics["mean"] == f"{want:.3f}" and spr.statistics["iqm"] == ""
    assert all(not method.statistics["iqm"] for method in found.methods)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"train": {"steps": 5_000}}, "budget: published 100,000 agent steps, here 5,000"),
        (
            {"protocol": "sticky=0.25,noops=0-29,actions=minimal,lives=unused,view=84x84 gray"},
            "protocol: published sticky=0,.*here sticky=0.25",
        ),
    ],
)
def test_runs_of_another_protocol_stand_in_no_table_with_published_ones(
    settings: dict[str, object], reason: str, tmp_path: Path
) -> None:
    own = summary(tmp_path, ("atari/pong", "atari/boxing"), **settings)
    found = published(own)
    assert found is not None and re.search(reason, found.reasons[0])
    study = collect([tmp_path / "grid"])
    section = next(
        s for s in document(study, [own]).sections if s.title.startswith("Published scores")
    )
    assert "(here)" not in repr(section) and "Not comparable" in repr(section)


# DeepMind Control


def test_dmc_stands_beside_published_scores_of_the_same_frames(tmp_path: Path) -> None:
    tasks = ("dmc/walker_walk", "dmc/ball_in_cup_catch", "dmc/cartpole_balance_sparse")
    found = beside(tmp_path, tasks, protocol="render=reference")
    assert found.reasons == [] and not found.complete
    port = next(m for m in found.methods if m.name == "DreamerV3 v1 (paper)")
    assert port.scores["dmc/cartpole_balance_sparse"] == 1000.0
    assert port.statistics["mean"] == f"{sum(port.scores.values()) / 3000:.3f}"
    assert not any("DreamerPro" in m.name for m in found.methods), "it lacks one of these tasks"
    quick = beside(tmp_path / "b", tasks, protocol="render=quick", train={"steps": 10_000})
    assert [reason.partition(":")[0] for reason in quick.reasons] == ["budget", "protocol"]


def test_every_published_task_of_dmc_is_one_of_ours() -> None:
    from reverie.benchmarks.report.published import _dmc_task
    from reverie.envs.registry import DMC_TASKS

    names = {row["task"] for row in rows("dmc_vision_scores.csv")}
    assert {_dmc_task(name) for name in names} <= {f"dmc/{name}" for name in DMC_TASKS}


def test_two_sources_of_background_scores_are_never_mixed(tmp_path: Path) -> None:
    tasks = (
        *("dmc/cartpole_swingup", "dmc/cheetah_run", "dmc/ball_in_cup_catch"),
        *("dmc/finger_spin", "dmc/reacher_easy", "dmc/walker_run"),
    )
    env = {"distractor": "dreamerpro"}
    found = beside(tmp_path, tasks, env=env, protocol="render=reference,distractor=procedural")
    assert found.complete and "Kinetics" in found.reasons[0]
    tables = found.tables()
    assert "DreamerPro" in [m.name for m in tables[MAIN]]
    quoted = tables["As quoted in the MuDreamer paper"]
    assert {"MuDreamer (paper)", "DreamerPro (in the MuDreamer paper)"} <= {m.name for m in quoted}
    assert next(m for m in quoted if m.name == "MuDreamer (paper)").statistics["mean"] == "0.517"


def test_nothing_is_published_of_other_suites(tmp_path: Path) -> None:
    assert published(summary(tmp_path, ("toy/catch",))) is None
