"""`reverie play`: the episode that evaluation plays, what the agent believed, and its film."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from known_world import Place, Torus, TorusLens, picture
from PIL import Image
from small_imitator import CFG as CHUNKS
from small_imitator import agent as small_imitator
from small_imitator import statistics

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.evaluate import evaluate
from reverie.agents.inspection import foresight
from reverie.agents.inspection.episodes import Played, filtered, play_episode, returns
from reverie.agents.inspection.films import Film, film_charts, write_film
from reverie.agents.inspection.foresight import Foresight, foresee
from reverie.agents.registry import build_agent
from reverie.agents.resolve import resolve
from reverie.agents.trainer import build_env
from reverie.world_models.ops import two_hot_mean


def made(name: str, task: str) -> tuple[Any, RunConfig, Any]:
    cfg = resolve(
        {"agent": name, "task": task, "train": {"device": "cpu"}},
        configs=["debug"],
    )
    env = build_env(cfg, "eval", 1)
    agent: Any = build_agent(env.spec, cfg)
    rng = torch.Generator().manual_seed(1)
    modules = [agent.model, *([agent.behavior] if hasattr(agent, "behavior") else [])]
    for parameter in (p for module in modules for p in module.parameters()):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    return agent, cfg, env


def episode(rewards: list[float], **changes: Any) -> Played:
    count = len(rewards)
    plain: dict[str, Any] = {
        "task": "test/a",
        "obs": {},
        "images": None,
        "action": torch.zeros(count, 2),
        "reward": torch.tensor(rewards),
        "terminal": False,
        "solved": False,
        "cut": "",
        "number": None,
        "latents": None,
        "said": {},
    }
    return Played(**{**plain, **changes})


# the episode


@pytest.mark.parametrize(
    ("name", "task"), [("mudreamer", "toy/dot"), ("spr", "toy/catch"), ("sr-spr", "toy/catch")]
)
def test_it_is_the_episode_that_evaluation_scores(name: str, task: str) -> None:
    agent, cfg, env = made(name, task)
    for number in (0, 2):
        played = play_episode(agent, agent, env, cfg, episode=number, steps=99, mode="eval")
        scored = evaluate(agent, env, episodes=1, seed=cfg.seed, first_episode=number)
        assert played.score == pytest.approx(scored["mean"], abs=1e-5)
        assert played.steps == scored["lengths"][0] and played.cut == ""
        rows = played.steps + 1
        sizes = {len(value) for value in (*played.said.values(), *played.obs.values())}
        assert sizes == {rows} == {len(played.action), len(played.reward)}
        assert played.images is not None and torch.equal(played.images, played.obs["image"])
    cut = play_episode(agent, agent, env, cfg, episode=0, steps=3, mode="eval")
    assert cut.steps == 3 and "not asked for" in cut.cut and not cut.terminal
    env.close()


def test_what_is_believed_is_the_agents_own_state() -> None:
    agent, cfg, env = made("mudreamer", "toy/dot")
    played = play_episode(agent, agent, env, cfg, episode=0, steps=6, mode="greedy")
    carry, seen = agent.initial_carry(1), []
    core = agent.model.rssm
    noise = torch.ones(1, core.sizes.stoch, core.sizes.classes)
    for t in range(7):
        obs = {"image": played.obs["image"][t : t + 1]}
        first = torch.tensor([t == 0])
        before = carry
        carry, _ = agent.act(carry, obs, first, mode="greedy")
        with torch.no_grad():
            embed, state = agent.model.encode(obs), (before["h"], before["z"])
            wanted = core.filter(state, embed, before["action"], first, noise)
            found = filtered(agent, carry, obs)
        assert torch.allclose(found.logits, wanted.logits, atol=1e-5)
        assert torch.equal(found.h, wanted.h) and torch.equal(found.z, wanted.z)
        seen.append(torch.cat([carry["h"], carry["z"]], -1))
    with torch.no_grad():
        value = two_hot_mean(agent.behavior.critic(torch.cat(seen)), agent.behavior.bins)
    assert torch.allclose(played.said["value"], value, atol=1e-6) and value.std() > 0
    assert {"reward", "continue", "policy"} < set(played.said)
    env.close()


def test_returns_are_discounted_and_end_with_the_episode_or_the_estimate() -> None:
    class Half:
        gamma = 0.5

        def learned_reward(self, reward: torch.Tensor) -> torch.Tensor:
            return reward.sign()

    lens: Any = Half()
    said = {"value": torch.tensor([9.0, 9.0, 9.0, 8.0])}
    over = episode([0.0, 3.0, 0.0, -2.0], terminal=True, said=said)
    assert returns(over, lens).tolist() == [0.75, -0.5, -1.0, 0.0]
    cut = over._replace(terminal=False)
    assert returns(cut, lens).tolist() == [0.75 + 1.0, -0.5 + 2.0, -1.0 + 4.0, 8.0]
    assert returns(episode([0.0], said={"value": torch.tensor([4.0])}), lens).tolist() == [4.0]


# imagined beside real


def torus_walk(count: int = 40) -> Played:
    rng = np.random.default_rng(0)
    action = torch.from_numpy(rng.integers(-1, 2, (count, 2))).float()
    action[-1] = 0.0
    place = torch.cat([torch.zeros(1, 2), action[:-1]]).cumsum(0) % 8
    rewards = [0.0] * count
    images = torch.from_numpy(picture(place))
    return episode(rewards, action=action, images=images, latents=Place(place))


@pytest.mark.parametrize("horizon", [1, 4, 7, 100])
def test_a_model_that_knows_the_world_foresees_it(
    horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, cfg = torus_walk(), RunConfig()
    monkeypatch.setattr(foresight, "lens_of", lambda *_: TorusLens(Torus()))
    found = foresee(None, cfg, played, horizon=horizon, seed=0)
    assert found is not None and found.horizon == horizon
    assert found.ahead[0] == 0 and found.ahead[1:].min() == 1
    assert found.ahead.max() == min(horizon, 39) and found.ahead.tolist()[1:3] == [
        1,
        1 if horizon == 1 else 2,
    ]
    assert np.nanmax(found.error) < 1e-5 and np.nanmax(found.distance) < 1e-5
    assert played.images is not None
    assert torch.equal(played.images[found.frame[1:]], played.images[1:])
    monkeypatch.setattr(foresight, "lens_of", lambda *_: TorusLens(Torus(sees=False)))
    blind = foresee(None, cfg, played, horizon=horizon, seed=0)
    assert blind is not None and np.nanmean(blind.error) > 0.1


def test_what_cannot_be_rolled_out_imagines_nothing() -> None:
    agent, cfg, env = made("rainbow", "toy/catch")
    played = play_episode(agent, agent, env, cfg, episode=0, steps=5, mode="eval")
    assert foresee(agent, cfg, played, horizon=5, seed=0) is None
    env.close()


@pytest.mark.parametrize("horizon", [2, 50])
def test_a_perfect_chunk_foresees_the_rows_that_came(
    horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, count = small_imitator(statistics=statistics()), 20
    rng = torch.Generator().manual_seed(0)
    vector = torch.randn(count, 6, generator=rng)
    action = torch.rand(count, 3, generator=rng)
    played = episode([0.0] * count, obs={"vector": vector}, action=action, number=2)
    chunk, reach = CHUNKS.model.chunk, min(horizon, CHUNKS.model.chunk - 1)
    model = agent.model

    def window(start: int) -> dict[str, torch.Tensor]:
        rows = [min(start + k, count - 1) for k in range(chunk)]
        own = {"vector": vector[rows][None], "action": action[rows][None]}
        pad = torch.tensor([[start + k >= count for k in range(chunk)]])
        return {**agent.normalised(own), "is_pad": pad, "task": torch.tensor([2])}

    starts = range(0, count - 1, reach)
    told: list[torch.Tensor] = []

    def predict(context: Any, given: torch.Tensor) -> torch.Tensor:
        told.append(given)
        return torch.cat([model.target_latents(window(start)) for start in starts])

    monkeypatch.setattr(model, "predict", predict)
    cfg = resolve({"agent": "act-jepa", "task": "point/a"})
    found = foresee(agent, cfg, played, horizon=horizon, seed=0)
    assert found is not None and found.horizon == reach and len(told) == 1
    assert torch.equal(told[0], torch.cat([window(start)["action"] for start in starts]))
    # a latent reads all of its window: the nearest is the row that came, whose window it was
    assert found.frame[1:].tolist() == list(range(1, count))
    assert np.nanmax(found.error) < 1e-5 and np.nanmax(found.distance) < 1e-5
    monkeypatch.setattr(model, "predict", lambda c, a: -predict(c, a))
    wrong = foresee(agent, cfg, played, horizon=horizon, seed=0)
    assert wrong is not None and np.nanmean(wrong.error) > 0.5


def test_looking_moves_no_random_number_and_no_weight() -> None:
    agent, cfg, env = made("mudreamer", "toy/dot")
    played = play_episode(agent, agent, env, cfg, episode=0, steps=9, mode="greedy")
    state, own = agent.state_dict(), torch.random.get_rng_state()
    kept = {name: value.clone() for name, value in state["model"].items()}
    streams = {name: value.clone() for name, value in state["generators"].items()}
    first = foresee(agent, cfg, played, horizon=4, seed=0)
    again = foresee(agent, cfg, played, horizon=4, seed=0)
    assert first is not None and again is not None
    assert np.array_equal(first.error, again.error, equal_nan=True)
    assert torch.equal(torch.random.get_rng_state(), own)
    now = agent.state_dict()
    assert all(torch.equal(now["model"][name], value) for name, value in kept.items())
    assert all(torch.equal(now["generators"][name], value) for name, value in streams.items())
    env.close()


# films


def test_a_film_shows_rows_and_what_was_imagined_of_them() -> None:
    played = torus_walk(6)
    ahead, frame = np.array([0, 1, 2, 1, 2, 1]), np.array([0, 1, 2, 5, 4, 5])
    known = np.array([np.nan, 0.1, 0.2, 0.3, 0.4, 0.5])
    drawn = np.full((6, 8, 8, 3), 77, np.uint8)
    seen = Foresight(2, ahead, frame, known, known, drawn)
    film = Film(played, None, seen, title="a title")
    assert len(film) == 6 and {film[t].shape for t in range(6)} == {film[0].shape}
    with pytest.raises(IndexError):
        film[6]
    assert played.images is not None
    side = 8 * 20
    for time in range(1, 6):
        real = np.asarray(played.images[time]).repeat(20, 0).repeat(20, 1)
        like = np.asarray(played.images[frame[time]]).repeat(20, 0).repeat(20, 1)
        top = next(
            y
            for y in range(film[time].shape[0] - side)
            if (film[time][y : y + side, 11:171] == real).all()
        )
        second = film[time][top : top + side, 11 + side + 14 : 11 + 2 * side + 14]
        assert np.array_equal(second, like)
        third = film[time][top : top + side, 11 + 2 * (side + 14) : 11 + 3 * side + 28]
        assert (third == 77).all()
    assert (film[0] != film[1]).any()


def test_charts_are_those_that_the_agent_can_fill() -> None:
    titles = [chart.title for chart in film_charts(torus_walk(5), None, None)]
    assert titles == ["reward", "actions"]
    said = {"value": torch.zeros(3), "reward": torch.zeros(3)}
    chosen = torch.eye(4)[[1, 3, 0]]
    chosen[-1] = 0.0
    full = film_charts(episode([0, 1, 2], action=chosen, said=said), torch.ones(3), None)
    assert [chart.title.partition(",")[0] for chart in full] == ["value", "reward", "action"]
    assert full[2].lines[0].values[:2].tolist() == [1.0, 3.0]
    assert [line.label for line in full[0].lines] == ["came", "estimate"]


def opened(path: Path) -> Any:
    return Image.open(io.BytesIO(path.read_bytes()))


def moving(count: int = 5) -> list[Any]:
    frames = np.full((count, 21, 31, 3), 255, np.uint8)
    for k in range(count):
        frames[k, :, 6 * k : 6 * k + 6] = (200, 40 * k, 0)
    return list(frames)


def test_files_hold_every_frame_at_the_rate_asked_for(tmp_path: Path) -> None:
    import cv2

    write_film(tmp_path / "new" / "a.gif", moving(), fps=5)
    gif = opened(tmp_path / "new" / "a.gif")
    assert gif.n_frames == 5 and gif.size == (31, 21) and gif.info["duration"] == 200
    for k, frame in enumerate(moving()):
        gif.seek(k)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frame).max() < 12
    write_film(tmp_path / "a.mp4", moving(), fps=5)
    film = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert (film.get(cv2.CAP_PROP_FPS), film.get(cv2.CAP_PROP_FRAME_COUNT)) == (5, 5)
    good, first = film.read()
    film.release()
    assert good and first.shape == (22, 32, 3)
    assert abs(int(first[10, 3, 2]) - 200) < 40, "red is red"
    assert {path.name for path in tmp_path.iterdir()} == {"new", "a.mp4"}


def test_a_film_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(list[Any]):
        def __getitem__(self, place: Any) -> Any:
            if place == 3:
                raise OSError(28, "No space left on device")
            return super().__getitem__(place)

    target = tmp_path / "a.gif"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        write_film(target, Broken(moving()), fps=5)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(ConfigError, match=r"ends in \.gif or \.mp4, found a\.avi"):
        write_film(tmp_path / "a.avi", moving(), fps=5)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"pip install 'reverie\[video\]'"):
        write_film(tmp_path / "a.mp4", moving(), fps=5)
