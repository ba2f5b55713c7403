"""The Atari 100k protocol: the picture, lost lives that end no game, stickiness, the budget."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from doubles import CountingAgent, TinyAgent
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from runs import assert_same
from test_envs_contract import random_actions, same

from reverie.agents.collector import Collector
from reverie.agents.resolve import resolve
from reverie.agents.trainer import build_env
from reverie.envs import EnvError, Step, make_vec, require_same_settings
from reverie.envs.atari import ATARI_100K
from reverie.envs.settings import settings_differences
from reverie.envs.single import episode_seed

pytestmark = pytest.mark.atari

SIZES = "18 10 7 9 18 18 18 4 18 9 6 3 18 8 18 18 18 18 14 9 6 18 6 18 18 6"
ACTIONS = dict(zip(ATARI_100K, map(int, SIZES.split()), strict=True))
"""Sizes of the minimal action sets."""


def make(game: str = "breakout", num_envs: int = 1, **options: Any) -> Any:
    return make_vec(f"atari/{game}", num_envs, **({"seed": 3, "gray": True} | options))


def play(vec: Any, steps: int) -> list[Step]:
    return [vec.reset(), *(vec.step(a) for a in random_actions(vec.spec, vec.num_envs, steps))]


def one(row: Step, key: str, slot: int = 0) -> Any:
    """One slot's value of a flag, the reward or an info array."""
    return (row.info[key] if key in row.info else getattr(row, key))[slot].item()


def stacked(history: list[np.ndarray]) -> np.ndarray:
    """Newest four pictures [4, S, S] since an episode's start, zeros before."""
    frames = [np.zeros_like(history[0])] * 3 + history
    return np.stack([frame[..., 0] for frame in frames[-4:]])


class Noops(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Does nothing for so many frames after a reset."""

    def __init__(self, env: Any, frames: int) -> None:
        super().__init__(env)
        self.frames = frames

    def reset(self, **options: Any) -> Any:
        found = self.env.reset(**options)
        for _ in range(self.frames):
            found = self.env.step(0)
        return found[0], found[-1]


def reference(game: str, noops: int) -> Any:
    import ale_py

    gymnasium.register_envs(ale_py)
    name = f"ALE/{game.title().replace('_', '')}-v5"
    env = gymnasium.make(name, frameskip=1, repeat_action_probability=0.0, disable_env_checker=True)
    single = AtariPreprocessing(Noops(env, noops), noop_max=0, screen_size=84)
    return FrameStackObservation(single, 4, padding_type="zero")


def bare(game: str, seed: int) -> tuple[Any, np.ndarray]:
    """ALE's own vector of one game at the start of our episode 0, and its stack [1, 4, S, S]."""
    from ale_py.vector_env import AtariVectorEnv

    ale = AtariVectorEnv(game, 1, use_fire_reset=False, reward_clipping=False)
    return ale, ale.reset(seed=np.array([episode_seed(seed, "train", 0, 0) & 0x7FFFFFFF]))[0]


@pytest.mark.parametrize("game", ["breakout", "ms_pacman"])
def test_four_rows_are_the_stack_of_gymnasium(game: str) -> None:
    vec = make(game, image_size=84)
    row = vec.reset()
    noops = one(row, "frames")
    assert 0 < noops <= 29, "the test has to see no-ops"
    env = reference(game, noops)
    expected, _ = env.reset(seed=0)
    history = [row.obs["image"][0]]
    assert np.array_equal(stacked(history), expected)
    for t, action in enumerate(random_actions(vec.spec, 1, 500)):
        row = vec.step(action)
        history.append(row.obs["image"][0])
        expected, reward, terminated, _, info = env.step(int(action.argmax()))
        assert np.array_equal(stacked(history), expected), t
        assert (one(row, "reward"), one(row, "is_terminal")) == (reward, terminated)
        assert one(row, "lives") == info["lives"]
        if terminated:
            break
    assert terminated and t > 100 and one(row, "is_last")
    env.close()


def test_a_row_is_the_newest_picture_of_ales_own_stack() -> None:
    ale, stack = bare("breakout", seed=3)
    vec = make(image_size=84)
    assert vec.spec.image_shape == (84, 84, 1)
    actions = random_actions(vec.spec, 1, 400)
    for row, action in zip(play(vec, 400), [*actions, actions[0]], strict=True):
        assert np.array_equal(row.obs["image"][0, ..., 0], stack[0, -1])
        if row.is_last[0]:
            break
        stack, *_ = ale.step(action.argmax(1).astype(np.int32))
    assert row.is_last[0]


def test_a_lost_life_ends_the_learners_episode_and_not_the_game() -> None:
    vec, whole = make(life_loss=True), make()
    row, plain = vec.reset(), whole.reset()
    rows, lives = [row], [one(row, "lives")]
    for action in random_actions(vec.spec, 1, 400):
        ended = one(row, "is_last")
        row = vec.step(action)
        rows.append(row)
        if ended and not vec.episodes[0]:
            assert one(row, "is_first") and not one(row, "is_last") and one(row, "reward") == 0
            lives.append(one(row, "lives"))
            continue  # no frame of the game
        plain = whole.step(action)
        assert np.array_equal(plain.obs["image"], row.obs["image"])
        assert plain.reward == row.reward and plain.info["frames"] == row.info["frames"]
        assert one(plain, "is_last") == (one(row, "is_last") and not one(row, "life_lost"))
        if vec.episodes[0] or whole.episodes[0]:
            break
    assert lives == [5, 4, 3, 2, 1]
    assert vec.episodes[0] == whole.episodes[0] == 1 and one(row, "lives") == 5
    assert sum(one(r, "life_lost") for r in rows) == 4
    game = rows[:-1]
    assert one(game[-1], "lives") == 0 and one(game[-1], "is_terminal")
    for earlier, later in pairwise(game):
        moved = one(later, "frames") - one(earlier, "frames")
        assert moved == (0 if one(earlier, "life_lost") else 4) or later is game[-1]
        if one(earlier, "life_lost"):
            assert one(earlier, "is_last") and one(earlier, "is_terminal")
            assert one(later, "is_first") and not one(later, "life_lost")
            assert np.array_equal(earlier.obs["image"], later.obs["image"])


class Watcher(CountingAgent):
    """Stacks what it is shown, as an agent would, from each `is_first` on."""

    def __init__(self, actions: int) -> None:
        super().__init__(actions)
        self.history: list[np.ndarray] = []
        self.seen: list[tuple[bool, np.ndarray]] = []

    def act(self, carry: Any, obs: Any, is_first: Any, *, mode: str = "train") -> Any:
        picture = obs["image"][0].numpy()
        self.history = [picture] if is_first[0] else [*self.history, picture]
        self.seen.append((bool(is_first[0]), stacked(self.history)))
        return super().act(carry, obs, is_first, mode=mode)


def test_an_agent_starts_its_stack_anew_with_every_life() -> None:
    vec = make(life_loss=True)
    agent = Watcher(vec.spec.action_size)
    collector = Collector(vec, agent, seed=0, device="cpu")
    while not vec.episodes[0]:
        collector.advance(random=False)
    starts = [t for t, (first, _) in enumerate(agent.seen) if first]
    assert len(starts) == 5 and starts[0] == 0
    stacks = [stack for _, stack in agent.seen]
    for t in starts:
        assert not stacks[t][:3].any() and stacks[t][3].any()
        assert not stacks[t + 1][:2].any() and np.array_equal(stacks[t + 1][2], stacks[t][3])
    for t in starts[1:]:
        assert stacks[t - 1].all(0).any(), "four pictures of the life before"
        assert np.array_equal(stacks[t - 1][3], stacks[t][3]), "the picture it ended with"


@pytest.mark.parametrize("num_envs", [1, 2])
def test_the_emulator_takes_exactly_the_budgeted_actions(
    num_envs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ale_py.vector_env import AtariVectorEnv

    taken = []
    plain = AtariVectorEnv.step

    def counted(ale: Any, actions: Any) -> Any:
        taken.append(len(actions))
        return plain(ale, actions)

    monkeypatch.setattr(AtariVectorEnv, "step", counted)
    vec = make(num_envs=num_envs, life_loss=True)
    collector = Collector(vec, CountingAgent(4), seed=1, device="cpu")
    rows = [collector.advance(random=True)]
    while collector.steps < 500:
        rows.append(collector.advance(random=True))
    resets = sum(int(row["is_first"].sum()) for row in rows)
    assert resets > 10 and vec.episodes.max() > 0
    assert sum(taken) == collector.steps == num_envs * len(rows) - resets
    for row in rows:
        assert not row["reward"][row["is_first"]].any()
        assert not row["action"][row["is_first"]].any()


def test_the_time_limit_does_not_count_the_starts_of_lives() -> None:
    rows = play(make(life_loss=True, time_limit=250), 260)
    end = next(t for t, r in enumerate(rows) if one(r, "is_last") and not one(r, "life_lost"))
    lives = [one(r, "life_lost") for r in rows[: end + 1]]
    assert sum(lives) > 1 and end == 250 + sum(lives)
    assert not one(rows[end], "is_terminal") and one(rows[end + 1], "frames") <= 29
    # a life lost in the very step of the limit is a death, and the end of the game
    first = lives.index(True)
    vec = make(life_loss=True, time_limit=first)
    cut = play(vec, first)[-1]
    assert one(cut, "is_last") and one(cut, "is_terminal") and not one(cut, "life_lost")
    assert one(vec.step(random_actions(vec.spec, 1, 1)[0]), "frames") <= 29
    assert vec.episodes[0] == 1


def test_the_action_of_a_lost_life_is_ignored() -> None:
    left, right = make(life_loss=True), make(life_loss=True)
    rows = left.reset(), right.reset()
    eye = np.eye(4, dtype=np.float32)
    lost = 0
    for t in range(150):
        ended = one(rows[0], "is_last")
        lost += ended
        chosen = [t * 7 % 4, (t * 7 + ended) % 4]
        rows = left.step(eye[chosen[:1]]), right.step(eye[chosen[1:]])
        assert same(*rows)
    assert lost > 1


def test_no_life_is_lost_where_none_remain() -> None:
    """Bank Heist plays on at 0 lives: one end for the learner, that of the game."""
    rows = play(make("bank_heist", seed=0, life_loss=True, image_size=8), 900)
    end = next(t for t, r in enumerate(rows) if one(r, "is_last") and not one(r, "life_lost"))
    game = rows[: end + 1]
    assert [one(r, "lives") for r in game if one(r, "life_lost")] == [3, 2, 1]
    assert sum(one(r, "lives") == 0 for r in game) > 10 and one(game[-1], "is_terminal")


def test_a_reset_forgets_a_lost_life() -> None:
    vec = make(life_loss=True, image_size=8)
    actions = random_actions(vec.spec, 1, 400)
    row, count = vec.reset(), 0
    while not one(row, "life_lost"):
        row, count = vec.step(actions[count]), count + 1
    again, fresh = play(vec, 10), play(make(life_loss=True, image_size=8), 10)
    assert all(same(a, b) for a, b in zip(again, fresh, strict=True))


def test_a_new_game_does_not_count_the_lives_of_the_old_one() -> None:
    vec = make(life_loss=True, image_size=8)
    vec.reset()
    vec._lives[:] = 6  # some games give lives
    assert one(vec.reset(), "lives") == 5
    assert not one(vec.step(random_actions(vec.spec, 1, 1)[0]), "is_last")


@pytest.mark.parametrize("life_loss", [False, True])
def test_a_slot_does_not_feel_its_neighbours(life_loss: bool) -> None:
    alone, pair, again = (make(num_envs=n, life_loss=life_loss, sticky=0.25) for n in (1, 2, 2))
    actions = random_actions(pair.spec, 2, 300)
    rows = alone.reset(), pair.reset(), again.reset()
    kinds = set()
    for action in actions:
        single, both, twin = rows
        assert same(both, twin)
        assert np.array_equal(single.obs["image"][0], both.obs["image"][0])
        for key in ("reward", "is_first", "is_last", "is_terminal", "frames", "life_lost"):
            assert one(single, key) == one(both, key), key
        kinds |= {tuple(both.is_first.tolist())}
        rows = alone.step(action[:1]), pair.step(action), again.step(action)
    assert kinds >= {(True, False), (False, True)} and pair.episodes.min() > 0


def test_sticky_actions_change_the_game_and_repeat_themselves() -> None:
    plain, sticky, again = (play(make(sticky=p), 100) for p in (0.0, 0.25, 0.25))
    assert all(same(a, b) for a, b in zip(sticky, again, strict=True))
    assert same(plain[0], sticky[0])
    assert not all(same(a, b) for a, b in zip(plain, sticky, strict=True))


def test_the_protocol_names_what_a_score_depends_on() -> None:
    assert make(gray=False).spec.protocol == (
        "sticky=0,noops=0-29,actions=minimal,lives=unused,view=64x64 rgb"
    )
    assert make(life_loss=True, sticky=0.25, image_size=84).spec.protocol == (
        "sticky=0.25,noops=0-29,actions=minimal,lives=terminal,view=84x84 gray"
    )


def kind_of(row: Step, slot: int) -> str:
    if one(row, "is_first", slot):
        return "first row of a game" if one(row, "lives", slot) == 5 else "first row of a life"
    if one(row, "life_lost", slot):
        return "lost life"
    return "end of a game" if one(row, "is_last", slot) else "between"


@pytest.mark.slow
def test_every_kind_of_row_is_rebuilt_exactly() -> None:
    def build() -> Collector:
        env = make(num_envs=2, life_loss=True, sticky=0.25, image_size=16)
        return Collector(env, TinyAgent(env.spec, seed=1), seed=3, device="cpu")

    def go_on(collector: Collector, t: int) -> Any:
        return collector.advance(random=t % 9 == 0)

    source, rows, moments = build(), [], dict[tuple[int, str], Any]()
    newest = 0
    while len(moments) < 2 * 5 or len(rows) < newest + 8:
        t = len(rows)
        assert t < 800, sorted(moments)
        rows.append(go_on(source, t))
        assert source._row is not None
        for slot in range(2):
            kind = kind_of(source._row, slot)
            if (slot, kind) not in moments:
                moments[slot, kind] = (t, source.state_dict(), source.agent.state_dict())
                newest = t
    used = build()
    for (slot, _), (t, state, agent) in moments.items():
        twin = used if slot else build()
        twin.agent.load_state_dict(agent)
        assert twin.load_state_dict(state) == []
        for k in range(t + 1, t + 8):
            assert_same(go_on(twin, k), rows[k])
        assert twin.steps == sum(int((~row["is_first"]).sum()) for row in rows[: t + 8])


@pytest.mark.parametrize("game", ["breakout", "ms_pacman"])
def test_scores_are_raw_and_of_whole_games(game: str) -> None:
    vec = make(game, seed=2, life_loss=True, image_size=16)
    collector = Collector(vec, CountingAgent(vec.spec.action_size), seed=0, device="cpu")
    rows = [collector.advance(random=True)]
    while not rows[-1]["is_last"][0] or one(collector._row, "life_lost"):  # type: ignore[arg-type]
        rows.append(collector.advance(random=True))
    (episode,) = collector.pop_finished()
    ale, _ = bare(game, seed=2)
    score = length = 0
    for row in rows:
        if not row["is_first"][0]:
            _, reward, terminated, *_ = ale.step(row["action"].argmax(1).astype(np.int32))
            score, length = score + int(reward[0]), length + 1
            assert row["reward"][0] == reward[0] and terminated[0] == (row is rows[-1])
    assert score > 1 and (episode.score, episode.length, episode.index) == (score, length, 0)
    assert sum(int(row["is_first"][0]) for row in rows) == (5 if game == "breakout" else 3)
    collector.advance(random=True)
    assert collector._scores[0] == 0 and vec.episodes[0] == 1


def test_games_without_lives_are_as_they_were() -> None:
    plain, counted = play(make("pong"), 60), play(make("pong", life_loss=True), 60)
    assert all(same(a, b) for a, b in zip(plain, counted, strict=True))
    assert not any(row.info["life_lost"].any() for row in counted)


def test_evaluation_plays_full_games() -> None:
    chosen = {"gray": True, "life_loss": True, "sticky": 0.25, "image_size": 32}
    cfg = resolve({"task": "atari/breakout", "env": chosen})
    train, evaluation = build_env(cfg, "train", 1), build_env(cfg, "eval", 2)
    assert settings_differences(train.settings, evaluation.settings) == {  # type: ignore[attr-defined]
        "life_loss": (True, False)
    }
    with pytest.raises(EnvError, match="life_loss: trained with True, evaluated with False"):
        require_same_settings(train.settings, evaluation.settings)  # type: ignore[attr-defined]
    for env, lives in ((train, "terminal"), (evaluation, "unused")):
        assert env.spec.image_shape == (32, 32, 1)
        assert f"sticky=0.25,noops=0-29,actions=minimal,lives={lives}" in env.spec.protocol


@pytest.mark.parametrize("sticky", [-0.1, 1.0, math.nan])
def test_stickiness_is_a_probability_below_one(sticky: float) -> None:
    with pytest.raises(EnvError, match="probability sticky"):
        make(sticky=sticky)


@pytest.mark.slow
@pytest.mark.parametrize("game", ATARI_100K)
def test_all_games_exist_in_both_views(game: str) -> None:
    for options in ({"gray": False}, {"image_size": 84, "life_loss": True}):
        vec = make(game, 2, **options)
        assert vec.spec.action_size == ACTIONS[game]
        row = play(vec, 4)[-1]
        assert row.obs["image"].shape == (2, *vec.spec.image_shape)
        assert row.obs["image"].std() > 1 and not row.is_last.any()
        vec.close()
