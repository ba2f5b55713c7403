"""Configuration: every mistake is found, listed and explained before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reverie.agents import budget, devices
from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.flags import config_from_args
from reverie.agents.overlays import as_tree, flatten, merge, overlay, to_toml
from reverie.agents.registry import AGENTS, FAMILIES
from reverie.agents.resolve import (
    SIZES,
    TASK_PRESETS,
    dump,
    load,
    override_hash,
    preset_names,
    read_preset,
    resolve,
    run_directory,
)
from reverie.envs.specs import EnvSpec

PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"sed": 1}, "sed: unknown setting; did you mean seed?"),
    ({"train": {"stesp": 1}}, "train.stesp: unknown setting; did you mean train.steps?"),
    ({"steps": 5}, "did you mean train.steps?"),
    ({"mudreamer": {"model": {"detr": 1}}}, "did you mean mudreamer.model.deter?"),
    ({"mudreamer": {"model_lr": 1e-4}}, "or mudreamer.optim.model_lr?"),
    ({"train": 3}, "train: expected a section of settings, found 3"),
    ({"train": {"steps": "many"}}, "train.steps: expected a whole number, found 'many'"),
    ({"train": {"steps": 10.5}}, "train.steps: expected a whole number, found 10.5"),
    ({"train": {"steps": True}}, "train.steps: expected a whole number, found True"),
    ({"train": {"train_ratio": "nan"}}, "train.train_ratio: expected a finite number"),
    ({"train": {"batch_size": -4}}, "train.batch_size: expected more than 0, found -4"),
    ({"env": {"num_envs": 0}}, "env.num_envs: expected more than 0, found 0"),
    ({"seed": -1}, "seed: expected at least 0, found -1"),
    ({"env": {"image_size": 60}}, "env.image_size: expected 8, 16, 32"),
    ({"env": {"render": "quik"}}, "did you mean quick?"),
    ({"task": "walker_walk"}, "task: expected suite/task"),
    ({"agent": "mudremer"}, "did you mean mudreamer?"),
    ({"size": "s"}, "size: expected one of nano, XS, S, M, L, XL, found 's'"),
    ({"mudreamer": {"model": {"heads": ["valu"]}}}, "did you mean value?"),
    ({"mudreamer": {"model": {"heads": ["value", "value"]}}}, "each head once"),
    ({"mudreamer": {"model": {"bins": 254}}}, "use 255"),
    ({"mudreamer": {"model": {"gamma": 1.5}}}, "a share between 0 and 1"),
    ({"mudreamer": {"optim": {"model_lr": 0}}}, "expected more than 0"),
    ({"mudreamer": {"behavior": {"min_std": 2.0}}}, "min_std: 2.0 is above"),
    (
        {"mudreamer": {"model": {"heads": ["action"], "value_target": "slow_critic"}}},
        "slow_critic needs the value head",
    ),
    ({"replay": {"capacity": 100}}, "hold no window"),
    ({"train": {"prefill": 10}}, "fill no window"),
    ({"train": {"steps": 1000}}, "nothing would be learned"),
    ({"train": {"device": "gpu"}}, "expected auto, cpu, cuda or cuda:N, found 'gpu'"),
    ({"train": {"device": "cpu", "compile": "graph"}}, "graph needs CUDA"),
    ({"train": {"device": "cpu", "precision": "bf16"}}, "bf16 needs CUDA"),
    ({"spr": {"model": {"history": 2}}}, "spr.model.history: mudreamer does not read it"),
    ({"act_jepa": {"execute": 3}}, "it is a setting of act-jepa, act, bc"),
    ({"env": {"workers": "inline"}}, "inline holds one dm_control renderer"),
]


@pytest.mark.parametrize(("bad", "message"), PROBLEMS, ids=[m[:40] for _, m in PROBLEMS])
def test_fault_24_each_bad_setting_is_explained(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(bad)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1, caught.value.problems


def test_fault_24_all_problems_come_in_one_error() -> None:
    bad = merge(tree for tree, _ in PROBLEMS if "task" not in tree and tree.get("train") != 3)
    with pytest.raises(ConfigError) as caught:
        resolve(bad)
    found = "\n".join(caught.value.problems)
    for name in ("sed:", "train.stesp:", "agent:", "size:", "mudreamer.model.detr:", "seed:"):
        assert name in found
    assert len(caught.value.problems) >= 15
    assert "does not read" not in found  # whose settings they are is unknown with the agent


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3e-4", 3e-4), ("1_000", 1000.0), (1, 1.0), ("  0.5 ", 0.5)],
)
def test_fault_24_numbers_written_as_text_are_numbers(value: Any, expected: float) -> None:
    cfg = resolve({"mudreamer": {"behavior": {"entropy": value}}})
    assert cfg.mudreamer.behavior.entropy == expected
    assert type(cfg.mudreamer.behavior.entropy) is float


def test_fault_24_whole_floats_are_counts_and_none_is_none() -> None:
    cfg = resolve({"train": {"steps": 1e6}, "env": {"action_repeat": "none", "time_limit": 50}})
    assert cfg.train.steps == 1_000_000 and type(cfg.train.steps) is int
    assert cfg.env.action_repeat is None and cfg.env.time_limit == 50


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(flatten(as_tree(RunConfig())))), JSON)
def test_fault_24_any_value_is_accepted_with_its_type_or_refused(name: str, value: Any) -> None:
    tree: Any = value
    for part in reversed(name.split(".")):
        tree = {part: tree}
    try:
        cfg = resolve(tree)
    except ConfigError as error:
        assert error.problems and all(error.problems)
        return
    assert tomllib.loads(dump(cfg))
    for leaf, number in flatten(as_tree(cfg)).items():
        assert not isinstance(number, float) or math.isfinite(number), leaf


@given(st.integers(1, 10**9), st.floats(1e-9, 1e9), st.text(max_size=20), st.booleans())
def test_dump_and_load_are_inverse(steps: int, ratio: float, run: str, none: bool) -> None:
    tree = {
        "run": None if none or run.lower() == "none" else run,
        "train": {"steps": steps, "train_ratio": ratio},
        "mudreamer": {"model": {"heads": [] if none else ["action"]}},
    }
    problems: list[str] = []
    cfg = overlay(RunConfig(), tree, problems)
    assert overlay(RunConfig(), tomllib.loads(dump(cfg)), problems) == cfg
    assert not problems


def test_config_file_round_trip_with_spaces_and_umlauts(tmp_path: Path) -> None:
    cfg = resolve({"task": "toy/dot", "size": "nano", "run": "Läufe und Träume/0"})
    path = tmp_path / "Ordner mit Lücke.toml"
    path.write_text(dump(cfg), encoding="utf-8")
    assert load(path) == cfg == resolve(configs=[str(path)])
    with pytest.raises(ConfigError, match="neither a preset"):
        load(tmp_path / "missing.toml")
    path.write_bytes(b"a = \xff")
    with pytest.raises(ConfigError, match="neither a preset"):
        load(path)
    path.write_text("a = [")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(path)


@pytest.mark.parametrize("name", preset_names())
def test_trap_14_every_value_of_every_preset_arrives(name: str) -> None:
    kind, _, rest = name.partition("-")
    own: dict[str, Any] = {"task": "toy/dot", "size": "nano", "agent": "mudreamer"}
    configs: list[str] = []
    if kind == "size":
        own["size"] = rest
    elif kind == "agent":
        own |= {"agent": rest, "size": "S"}
    elif kind == "family":
        member, _, suite = rest.partition("-")
        own |= {"agent": FAMILIES[member][0], "task": f"{suite or 'toy'}/x"}
    elif kind == "debug" and rest:
        own, configs = {"agent": FAMILIES[rest][0]}, [kind]
    elif kind == "task":
        suite = next(suite for suite, preset in TASK_PRESETS.items() if preset == name)
        own["task"] = f"{suite}/x"
    else:
        own, configs = {}, [name]
    resolved = flatten(as_tree(resolve(own, configs=configs)))
    for key, value in flatten(read_preset(name)).items():
        assert resolved[key] == value, key


def test_trap_14_presets_cover_every_agent_and_size() -> None:
    names = preset_names()
    assert {f"agent-{agent}" for agent in AGENTS} | {f"size-{size}" for size in SIZES} <= set(names)
    assert set(TASK_PRESETS.values()) <= set(names)
    assert sorted(agent for members in FAMILIES.values() for agent in members) == sorted(AGENTS)


@given(st.lists(st.sampled_from("abcxyz"), min_size=1, max_size=3).map("".join), st.integers(0, 5))
def test_trap_14_an_unknown_key_at_any_depth_is_an_error(word: str, depth: int) -> None:
    place = ["train", "env", "replay", "mudreamer", "mudreamer.model", "mudreamer.optim"][depth]
    name = f"{place}.zz_{word}"
    with pytest.raises(ConfigError, match=f"{name}: unknown setting"):
        config_from_args(["--task", "toy/dot", f"--{name}", "1"], agent="mudreamer")
    tree: Any = 1
    for part in reversed(name.split(".")):
        tree = {part: tree}
    with pytest.raises(ConfigError, match=f"{name}: unknown setting"):
        resolve(tree)


def test_presets_lie_in_the_stated_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('size = "nano"\n[train]\nsteps = 7000\n[mudreamer.model]\ndeter = 24\n')
    cfg = config_from_args(
        ["dreamerv3", "--task", "toy/dot", "--config", str(file), "--train.steps=8000"]
    )
    model = cfg.mudreamer.model
    assert (cfg.size, model.deter, model.units) == ("nano", 24, 128)
    assert cfg.train.steps == 8000 and cfg.train.train_ratio == 128
    assert (model.enc_norm, model.kl_dyn, model.kl_rep) == ("ln", 0.5, 0.1)
    assert (model.heads, model.decoder) == ((), "grad")


def test_flags_take_lists_dashes_and_equals_signs() -> None:
    cfg = config_from_args(
        ["--train.eval-every=70", "--mudreamer.model.heads", "action", "value"], agent="mudreamer"
    )
    assert cfg.train.eval_every == 70 and cfg.mudreamer.model.heads == ("action", "value")
    assert (
        config_from_args(
            ["--mudreamer.model.heads", "none"], agent="mudreamer"
        ).mudreamer.model.heads
        == ()
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["oops"], "unexpected argument 'oops'"),
        (["--seed"], "--seed: expected a value"),
        (["--seed", "1", "--seed", "2"], "--seed: given twice"),
        (["--train.steps", "5000", "--train", "3"], "--train: is a section"),
        (["--seed", "1", "--seed.x", "2"], "seed is a single setting"),
        (["--config", "nope"], "config 'nope': neither a preset"),
    ],
)
def test_fault_24_bad_command_lines(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_args(args, agent="mudreamer")
    assert message in str(caught.value)


def test_run_directories_tell_changed_settings_apart() -> None:
    plain = resolve({"task": "dmc/walker_walk"})
    assert run_directory(plain) == Path("runs/dmc/walker_walk/mudreamer-S/0")
    assert override_hash(plain) == "" == override_hash(dataclasses.replace(plain, seed=5))
    one = resolve({"task": "dmc/walker_walk", "train": {"steps": 9999}})
    two = resolve({"task": "dmc/walker_walk", "train": {"steps": 9998}})
    assert len({run_directory(cfg) for cfg in (plain, one, two)}) == 3
    assert run_directory(one).parts[-2].startswith("mudreamer-S-")
    elsewhere = resolve({"run": "somewhere else/x"})
    assert run_directory(elsewhere) == Path("somewhere else/x")


def test_toml_writer_agrees_with_the_reader() -> None:
    tree = {"a": 'q"\\\n\t\x7fü', "b": {"c": [1, 2.5, "x"], "d": {"e": True, "f": 1e-300}}}
    assert tomllib.loads(to_toml(tree)) == tree


def test_fault_19_a_replay_larger_than_memory_is_refused_with_an_estimate(tmp_path: Path) -> None:
    spec = EnvSpec("x/y", action_size=4, discrete=True, image_shape=(64, 64, 3))
    cfg = resolve({"task": "toy/dot", "replay": {"capacity": 10**8}})
    assert budget.row_bytes(cfg, spec) == 64 * 64 * 3 + 16 + 7
    with pytest.raises(ConfigError) as caught:
        budget.check_replay_fits(cfg, tmp_path, spec)
    for part in ("GiB of memory", "--replay.capacity", "--replay.storage memmap"):
        assert part in str(caught.value)
    disk = resolve({"replay": {"capacity": 10**12, "storage": "memmap"}})
    with pytest.raises(ConfigError, match="of disk at"):
        budget.check_replay_fits(disk, tmp_path / "not" / "yet" / "there")
    budget.check_replay_fits(resolve({"task": "toy/dot"}), tmp_path, spec)


def test_fault_19_the_named_capacity_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda: 10**9)
    cfg = resolve({"task": "toy/dot", "replay": {"capacity": 10**6}})
    with pytest.raises(ConfigError) as caught:
        budget.check_replay_fits(cfg, tmp_path)
    fits = int(str(caught.value).partition("--replay.capacity ")[2].partition(" ")[0])
    budget.check_replay_fits(resolve({"task": "toy/dot", "replay": {"capacity": fits}}), tmp_path)
    with pytest.raises(ConfigError):
        budget.check_replay_fits(
            resolve({"task": "toy/dot", "replay": {"capacity": fits + 1000}}), tmp_path
        )


def test_fault_20_missing_cuda_is_refused_or_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.resolve_device("auto") == torch.device("cpu") == devices.resolve_device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=r"torch finds no CUDA; use --train\.device auto"):
            devices.resolve_device(name)
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        devices.resolve_device("cuda:x")


def test_fault_20_a_device_number_too_high_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.resolve_device("auto") == torch.device("cuda")
    assert devices.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="there are 2 devices"):
        devices.resolve_device("cuda:2")


def test_fault_20_out_of_memory_says_the_need_and_the_flags() -> None:
    cfg = resolve({"replay": {"storage": "device"}})
    with pytest.raises(devices.DeviceMemoryError) as caught, devices.memory_advice(cfg):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for part in (
        "16 windows of 64 rows at size S",
        "Tried to allocate 2.00 GiB",
        "--replay.storage ram",
        "--train.precision bf16",
        "--train.batch-size 8",
        "not split, because batch norm",
    ):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    with pytest.raises(KeyError), devices.memory_advice(cfg):
        raise KeyError("passes through")


@pytest.mark.parametrize(("agent", "batch"), [("spr", 32), ("bbf", 64)])
def test_fault_20_the_advice_suits_an_agent_that_draws_transitions(agent: str, batch: int) -> None:
    own = {"agent": agent, "task": "atari/pong", "train": {"batch_size": batch}}
    cfg = resolve(own)
    with pytest.raises(devices.DeviceMemoryError) as caught, devices.memory_advice(cfg):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    shown = str(caught.value)
    assert f"an update of {batch} transitions at size S" in shown and "windows" not in shown
    for part in (
        "--replay.capacity 60000",
        "--train.precision bf16",
        f"--train.batch-size {batch // 2}",
    ):
        assert part in shown
    for refused in ("--replay.storage", "batch norm", "XS", "XL"):
        assert refused not in shown, refused
    # what is advised is accepted
    flags = ["--replay.capacity", "60000", "--train.batch-size", str(batch // 2), "--size", "nano"]
    config_from_args(["--task", "atari/pong", *flags], agent=agent)


def test_fault_19_no_storage_is_named_that_the_agent_refuses(tmp_path: Path) -> None:
    cfg = resolve({"agent": "spr", "task": "atari/pong", "replay": {"capacity": 10**9}})
    with pytest.raises(ConfigError) as caught:
        budget.check_replay_fits(cfg, tmp_path)
    assert "--replay.capacity" in str(caught.value) and "memmap" not in str(caught.value)


def test_the_registry_passes_every_setting_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from reverie.agents.registry import build_agent

    made: dict[str, Any] = {}

    def fake(spec: Any, cfg: Any, **options: Any) -> str:
        made.update(spec=spec, cfg=cfg, **options)
        return "agent"

    monkeypatch.setitem(sys.modules, "reverie.agents.mudreamer", SimpleNamespace(MuDreamer=fake))
    spec = EnvSpec("x/y", action_size=2, discrete=False, image_shape=(64, 64, 3))
    cfg = resolve({"agent": "dreamerv3", "seed": 7, "train": {"device": "cpu"}})
    assert build_agent(spec, cfg) == "agent"
    assert made == {
        "spec": spec,
        "cfg": cfg.mudreamer,
        "seed": 7,
        "device": "cpu",
        "compile": "off",
        "precision": "fp32",
        "batch_shape": (16, 64),
    }
    with pytest.raises(ConfigError, match="expected one of mudreamer, dreamerv3"):
        build_agent(spec, dataclasses.replace(cfg, agent="ppo"))
