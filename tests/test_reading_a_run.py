"""The page that explains a run, against what tiny runs of every family really write."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_demos
from google.protobuf import text_format
from PIL import Image
from point_world import TASKS, point_config, write_points
from runs import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from reverie.agents.configs import RunConfig
from reverie.agents.overlays import as_tree, flatten
from reverie.agents.resolve import resolve
from reverie.agents.runs.summary import SCORES, UNSHOWN, hparams, layout, overview
from reverie.agents.runs.tensorboard_events import LAYOUT
from reverie.agents.trainer import train
from reverie.envs import registry

PAGE = ROOT / "docs" / "reading_a_run.md"
FAMILIES = {"M": "mudreamer", "S": "spr", "J": "act-jepa"}
KINDS = {"Scalars": "scalars", "Pictures": "images", "Other pages": "tensors"}
LOOK = {"inspect_every": 1000, "inspect_probe": 2}
"""One look, at the end."""

PLAYED = ("evaluation, worst to best episode", "success")
"""Charts of runs that are evaluated."""

Row = tuple[str, str, str]
"""Kind, tag with its placeholders, families."""


def explained() -> list[Row]:
    """Every tag of the page's tables."""
    rows, kind = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            kind = KINDS.get(line[3:], "")
        if kind and line.startswith("| `"):
            tags, families, meaning = (cell.strip() for cell in line.strip("|").split(" | ", 2))
            assert len(meaning) > 8, line
            of = "M S J" if families == "all" else families
            rows += [(kind, tag, of) for tag in re.findall(r"`([^`]+)`", tags)]
    return rows


def pattern(tag: str) -> re.Pattern[str]:
    number = re.sub(r"<[kn]>", r"\\d+", tag)
    return re.compile(number.replace("<task>", r"[\w-]+"))


def read(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    found.Reload()
    return found


def trained(cfg: RunConfig, run: Path) -> Path:
    assert train(cfg) == 0
    return run


def explored(agent: str, run: Path, **tree: Any) -> Path:
    own = {"agent": agent, "run": str(run), **tree}
    own["train"] = {"steps": 100, "eval_every": 0, "monitor_from": 0, **LOOK}
    return trained(resolve(own, configs=["debug"]), run)


def imitated(run: Path, data: Path, **tree: Any) -> Path:
    own = {"task": "point/both", **tree}
    judged = {"monitor_every": 4, "monitor_from": 0}
    own["train"] = {"steps": 8, **judged, **LOOK, **tree.get("train", {})}
    return trained(point_config(run, data, **own), run)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Runs of each family, with every switch on that adds a tag."""
    at = tmp_path_factory.mktemp("all") / "all runs"
    demos = write_points(at / "demos", episodes=20, length=10)
    pictures = small_demos.write_demos(at / "pictures", tasks=("point/a",), episodes=8, images=True)
    seen: dict[str, Any] = {"inputs": ["proprio", "image"], "targets": ["proprio", "image"]}
    seen |= {"guard": "sigreg", "action_conditioned": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TASK_SETS, "point/both", TASKS)
        looking = imitated(
            at / "looking",
            pictures,
            task="point/a",
            train={"eval_episodes": 0, "final_episodes": None},
            demos={"train_episodes": 6, "held_out_episodes": 2},
            act_jepa={"model": seen},
        )
        style = {"model": {"vae": True, "vae_size": 4, "vae_layers": 1}}
        imitators = [
            imitated(at / "two tasks", demos),
            looking,
            imitated(at / "style", demos, agent="act", act_jepa=style),
        ]
    model = {"decoder": "grad", "objectives": ["spr", "barlow"]}
    dreamer = explored(
        "mudreamer",
        at / "dreamer",
        task="toy/dot",
        env={"distractor": "natural"},
        mudreamer={"model": model},
    )
    probed = explored("mudreamer", at / "probed", task="toy/dot")  # has no decoder of its own
    agents = ("spr", "rainbow")
    catchers = [explored(agent, at / agent, task="toy/catch") for agent in agents]
    return {"M": [dreamer, probed], "S": catchers, "J": imitators}


@pytest.fixture(scope="module")
def written(runs: dict[str, list[Path]]) -> dict[str, dict[str, set[str]]]:
    """Tags by family and kind."""
    found: dict[str, dict[str, set[str]]] = {}
    for letter, paths in runs.items():
        tags = [read(path).Tags() for path in paths]
        found[letter] = {k: {t for one in tags for t in one[k]} for k in KINDS.values()}
    return found


def test_the_page_names_no_tag_twice() -> None:
    rows = explained()
    names = [row[:2] for row in rows]
    assert len(set(names)) == len(names) > 90
    assert {letter for row in rows for letter in row[2].split()} == set(FAMILIES)


@pytest.mark.parametrize("letter", FAMILIES)
def test_every_tag_of_a_run_is_explained(
    written: dict[str, dict[str, set[str]]], letter: str
) -> None:
    own = [(kind, pattern(tag)) for kind, tag, of in explained() if letter in of.split()]
    for kind, tags in written[letter].items():
        for tag in sorted(tags):
            known = [p for k, p in own if k == kind and p.fullmatch(tag)]
            assert len(known) == 1, f"{tag}, written by {FAMILIES[letter]}: explained by {known}"


@pytest.mark.parametrize("letter", FAMILIES)
def test_every_tag_of_the_page_is_written(
    written: dict[str, dict[str, set[str]]], letter: str
) -> None:
    own = [(kind, tag) for kind, tag, of in explained() if letter in of.split()]
    missing = [
        tag
        for kind, tag in own
        if not any(pattern(tag).fullmatch(found) for found in written[letter][kind])
    ]
    assert missing == [], f"no run of {FAMILIES[letter]} writes {missing}"


def test_tags_have_the_shapes_that_the_page_says(runs: dict[str, list[Path]]) -> None:
    # a chunk shows the rows up to the end of its episode
    animated: dict[str, set[int]] = {"M": {5 + 20}, "S": {5 + 3}, "J": {1, 2, 3, 4}}
    for letter, lengths in animated.items():
        run = runs[letter][1 if letter == "J" else 0]
        events = read(run)
        for tag in events.Tags()["images"]:
            for image in events.Images(tag):
                with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
                    frames = getattr(picture, "n_frames", 1)
                    assert picture.size == (image.width, image.height)
                still = tag in ("inspect/error", "inspect/similarity")
                assert frames in ({1} if still else lengths), (tag, frames)
        for tag in events.Tags()["scalars"]:
            points = events.Scalars(tag)
            assert points and all(isinstance(point.value, float) for point in points)
            assert np.isfinite(points[-1].value), tag


# what the other pages are made from


def test_the_layout_draws_every_number_worth_a_chart_and_no_empty_one(
    runs: dict[str, list[Path]],
) -> None:
    for run in (path for paths in runs.values() for path in paths):
        events = read(run)
        (config,) = events.Tensors("custom_scalars__config__")
        page = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
        titles = [category.title for category in page.category]
        assert titles in (list(LAYOUT), [t for t in LAYOUT if t != "Imagination"])
        tags, shown = set(events.Tags()["scalars"]), set()
        for category in page.category:
            for chart in category.chart:
                bands = {tag for s in chart.margin.series for tag in (s.value, s.lower, s.upper)}
                lines = {t for tag in chart.multiline.tag for t in tags if re.match(tag, t)}
                played = "eval/mean" in tags or chart.title not in PLAYED
                assert (bands & tags) | lines or not played, f"{run.name}: {chart.title} is empty"
                assert not (bands | lines) & shown, "a tag is drawn once"
                shown |= bands | lines
        hidden = {tag.partition("/")[0] for tag in tags - shown}
        assert hidden <= {"inspect", "episode", "imagined", "nonfinite", "eval"}, hidden


def test_runs_that_cannot_alarm_have_no_chart_of_alarms() -> None:
    for own in ({"monitor": "off"}, {"monitor_every": 0}):
        assert "alarms" not in layout(resolve({"task": "toy/dot", "train": own}))["Health"]
    assert "alarms" in layout(resolve({"task": "toy/dot"}))["Health"]


def test_the_projector_finds_its_files(runs: dict[str, list[Path]]) -> None:
    for letter, index, pictured in (
        ("M", 0, True),
        ("S", 0, True),
        ("J", 0, False),
        ("J", 1, True),
    ):
        run = runs[letter][index]
        found = text_format.Parse((run / "projector_config.pbtxt").read_text(), ProjectorConfig())
        (cloud,) = found.embeddings
        assert cloud.tensor_name == "inspect/latents"
        vectors = np.loadtxt(run / cloud.tensor_path, delimiter="\t", ndmin=2)
        assert list(vectors.shape) == list(cloud.tensor_shape) and len(vectors) > 16
        lines = (run / cloud.metadata_path).read_text().splitlines()
        assert len(lines) == len(vectors) + 1
        assert ("kind" if letter != "J" else "task") in lines[0].split("\t")
        assert bool(cloud.sprite.image_path) == pictured
        if pictured:
            with Image.open(run / cloud.sprite.image_path) as sheet:
                columns = [
                    s // d for s, d in zip(sheet.size, cloud.sprite.single_image_dim, strict=True)
                ]
            assert columns[0] == columns[1] and columns[0] ** 2 >= len(vectors)


def test_runs_of_all_families_share_the_columns_of_the_hparams_page(
    runs: dict[str, list[Path]],
) -> None:
    columns = set()
    for letter, paths in runs.items():
        events = read(paths[0])
        about = {
            name: plugin_data_pb2.HParamsPluginData.FromString(
                events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content
            )
            for name in ("experiment", "session_start_info", "session_end_info")
        }
        infos = about["experiment"].experiment
        columns.add(tuple(info.name for info in infos.hparam_infos))
        assert [metric.name.tag for metric in infos.metric_infos] == list(SCORES)
        values = about["session_start_info"].session_start_info.hparams
        assert values["agent"].string_value == FAMILIES[letter]
        assert "--train.steps" in values["changed"].string_value
        assert {"eval/mean", "health/alarms", "inspect/error_last"} <= set(SCORES)
        assert events.Scalars("eval/mean"), "the page reads the last value of a scalar"
    (names,) = columns
    assert set(names) == {*flatten(as_tree(RunConfig())), "changed"} - set(UNSHOWN)


def test_settings_that_are_unset_or_lists_have_a_cell() -> None:
    row = hparams(resolve({"agent": "spr", "task": "toy/catch", "seed": 3}))
    assert row["seed"] == 3 and row["env.time_limit"] is None and row["env.gray"] in (True, False)
    assert row["spr.model.channels"] == "32 64 64" and row["changed"] == "nothing"
    json.dumps(row)


def test_the_text_page_tells_how_to_continue(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    run = runs["S"][0]
    events = read(run)
    (text,) = events.Tensors("run/text_summary")
    told = text.tensor_proto.string_val[0].decode()
    assert told == overview(resolve({}, configs=[str(run / "config.toml")]), run)
    (command,) = re.findall(r"^    (reverie train .+)$", told, flags=re.MULTILINE)
    assert f"'{run}'" in command, "a path with a space is quoted"
    assert "`train.steps` | 100 |" in told and "torch " in told
    (settings,) = events.Tensors("config/text_summary")
    content = settings.tensor_proto.string_val[0].decode()
    assert all(f"`{name}`" in content for name in flatten(as_tree(RunConfig())))
