"""Atari games: names, pixels, protocols, episode borders, seeds, exact saving, pictures, evaluation."""

from __future__ import annotations

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from ale_py import roms
from gymnasium.wrappers import AtariPreprocessing

import envs.atari
from common.games import TWO_PLAYER_ONLY, find_game, game_names
from configs import loader
from configs.schema import AtariConfig
from envs import EnvError, make_vec, resolve_env_id
from envs.scores import ATARI_SCORES
from training.evaluation import RandomPolicy, evaluate

pytestmark = pytest.mark.atari

PLAIN = AtariConfig(sticky_probability=0.0)
MACHADO = AtariConfig(sticky_unit="frame", full_action_set=True)
CLASSIC = AtariConfig(sticky_probability=0.0, noop_max=30, episodic_life=True)
SHORT = 200  # frames, that is 50 env steps


def short(config=PLAIN, **changes):
    return envs.atari.dataclasses.replace(config, max_frames=SHORT, **changes)


def rollout(env, steps):
    return [env.step(env.random_action()) for _ in range(steps)]


def assert_same(first, second):
    for ours, theirs in zip(first, second, strict=True):
        for name in ours._fields:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


def actions_played(env, index=0):
    return env.state_dict()["native"]["actions"][index]


# Names


@pytest.mark.parametrize("name", ["BeamRider", "beam_rider", "ALE/BeamRider-v5", "ALE/beam_rider-v5"])
def test_names_of_a_game(name):
    assert resolve_env_id(name) == "ALE/BeamRider-v5"


def test_every_game_has_the_id_under_which_ale_registers_it():
    registered = {name for name in gym.registry if name.startswith("ALE/")}
    assert {resolve_env_id(rom) for rom in game_names()} == registered
    assert len(registered) == len(roms.get_all_rom_ids()) - len(TWO_PLAYER_ONLY)
    assert {find_game(env_id) for env_id in registered} == game_names().keys()


def test_the_57_games_resolve():
    assert len(ATARI_SCORES) == 57 and ATARI_SCORES.keys() < game_names().keys()


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("Asterx", "Asterix"),
        ("pnog", "Pong"),
        ("BreakoutNoFrameskip-v4", "Breakout"),
        ("PONG", "Pong"),
        ("ALE/Pongg-v5", "Pong"),
    ],
)
def test_unknown_games_name_the_nearest(name, nearest):
    with pytest.raises(EnvError, match=f"nearest names: .*{nearest}") as caught:
        make_vec(name)
    assert "\n" not in str(caught.value)


def test_two_player_cartridges_are_unknown():
    with pytest.raises(EnvError, match="unknown environment 'Combat'"):
        make_vec("Combat")


# Pixels


@pytest.mark.parametrize(
    "game", ["Asterix", *(pytest.param(game, marks=pytest.mark.slow) for game in ("Pong", "Breakout"))]
)
def test_pixels_rewards_and_ends_equal_gymnasiums_preprocessing(game):
    ours = make_vec(game, 1, 4, atari=AtariConfig(sticky_probability=0.0, reward_clipping=False))
    obs = ours.reset(seeds=3)
    assert obs.shape == (1, 4, 84, 84) and obs.dtype == np.uint8 and ours.observation_space.contains(obs[0])
    console = gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0)
    theirs = AtariPreprocessing(console, noop_max=0, frame_skip=4, screen_size=84)
    frame, _ = theirs.reset(seed=int(ours.state_dict()["native"]["console_seed"][0]))
    stack = [np.zeros((84, 84), np.uint8)] * 3 + [frame]
    np.testing.assert_array_equal(obs[0], stack)
    rewards = 0.0
    for _ in range(250):
        action = ours.random_action()
        step = ours.step(action)
        frame, reward, terminated, truncated, _ = theirs.step(int(action[0]))
        stack = [*stack[1:], frame]
        np.testing.assert_array_equal(step.next_obs[0], stack)
        assert (step.reward[0], step.terminated[0], step.truncated[0]) == (reward, terminated, truncated)
        rewards += abs(reward)
        if terminated:
            break
    assert rewards > 0, "nothing happened in the game"


@pytest.mark.parametrize("config", [PLAIN, MACHADO])
def test_picture_is_the_emulators_own(config):
    """An emulator of ALE's other interface, given the seed and the actions that were saved, shows the same screen."""
    env = make_vec("Asterix", 2, 4, "rgb_array", config)
    env.reset(seeds=1)
    steps = rollout(env, 100)
    saved = env.state_dict()["native"]
    console = ale_py.ALEInterface()
    console.setFloat(
        "repeat_action_probability", config.sticky_probability if config.sticky_unit == "frame" else 0.0
    )
    console.setInt("random_seed", int(saved["console_seed"][0]))
    console.loadROM(roms.get_rom_path("asterix"))
    console.reset_game()
    legal = console.getLegalActionSet() if config.full_action_set else console.getMinimalActionSet()
    rewards = []
    for action in saved["actions"][0]:
        rewards.append(0)
        screens = []
        for _ in range(4):
            rewards[-1] += console.act(legal[action])
            screens.append(console.getScreenRGB())
    assert not console.game_over() and sum(rewards) > 0
    np.testing.assert_array_equal(env.render(), np.maximum(*screens[-2:]))
    np.testing.assert_array_equal([step.reward[0] for step in steps], np.sign(rewards))
    assert env.render().shape == (210, 160, 3) and env.frames_per_second == 15


@pytest.mark.slow
def test_picture_follows_resets_and_restoring():
    env = make_vec("Breakout", 1, 4, "rgb_array", short())
    blind = make_vec("Breakout", 1, 4, atari=short())
    env.reset(seeds=1)
    blind.reset(seeds=1)
    pictures = []
    for _ in range(120):
        assert_same(rollout(env, 1), rollout(blind, 1))
        pictures.append(env.render())
        if len(pictures) == 70:
            state = env.state_dict()
    other = make_vec("Breakout", 1, 4, "rgb_array", short())
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.render(), pictures[69])
    rollout(other, 50)
    np.testing.assert_array_equal(other.render(), pictures[-1])


# Protocols


def test_sticky_actions_repeat_whole_steps_at_the_given_rate():
    env = make_vec("Pong", 2, 4)
    env.reset(seeds=0)
    chosen = np.array([[(time + index) % 6 for time in range(500)] for index in range(2)])
    for time in range(500):
        env.step(chosen[:, time])
    repeated = []
    for index in range(2):
        played = actions_played(env, index).astype(int)
        before = np.concatenate([[0], played[:-1]])  # a game starts as if a no-op had been played
        assert ((played == chosen[index]) | (played == before)).all()
        repeated.append((played != chosen[index])[chosen[index] != before])
    draws = np.concatenate(repeated)
    assert abs(draws.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(draws))
    together = np.stack([r[:350] for r in repeated])
    assert np.abs(np.corrcoef(together) - np.eye(2)).max() < 5 / np.sqrt(350)


def test_no_sticky_actions_where_none_are_asked_for():
    env = make_vec("Pong", 1, 4, atari=PLAIN)
    env.reset(seeds=0)
    chosen = [int(env.random_action()[0]) for _ in range(50)]
    for action in chosen:
        env.step(np.array([action]))
    np.testing.assert_array_equal(actions_played(env), chosen)


def test_sticky_frames_are_the_emulators():
    """One action all along: nothing to stick to, whatever the rate. Changing actions: the rate matters."""
    config = AtariConfig(sticky_unit="frame")
    sticky, plain = (make_vec("Pong", 1, 4, atari=c) for c in (config, PLAIN))
    sticky.reset(seeds=0)
    plain.reset(seeds=0)
    still = np.zeros(1, np.int64)
    assert_same([sticky.step(still) for _ in range(30)], [plain.step(still) for _ in range(30)])
    moves = [np.array([time % 6]) for time in range(60)]
    differs = [(sticky.step(a).obs != plain.step(a).obs).any() for a in moves]
    assert any(differs)


def test_action_sets():
    assert make_vec("Pong", 1, 4).action_space.n == 6
    assert make_vec("Pong", 1, 4, atari=MACHADO).action_space.n == 18


def test_rewards_are_clipped_for_the_learner_and_raw_in_returns():
    config = AtariConfig(max_frames=1200)
    clipped = make_vec("Asterix", 2, 4, atari=config)
    raw = make_vec("Asterix", 2, 4, atari=envs.atari.dataclasses.replace(config, reward_clipping=False))
    clipped.reset(seeds=0)
    raw.reset(seeds=0)
    ours, theirs = rollout(clipped, 320), rollout(raw, 320)
    points = np.stack([step.reward for step in theirs])
    np.testing.assert_array_equal(np.stack([step.reward for step in ours]), np.sign(points))
    assert points.max() >= 50  # Asterix pays in fifties
    returns = [episode for step in ours for episode in step.episodes]
    assert returns == [episode for step in theirs for episode in step.episodes]
    for index in range(2):
        mine = [e for e in returns if e.env_index == index]
        length = sum(e.length for e in mine)
        assert mine and sum(e.episodic_return for e in mine) == points[:length, index].sum()


def test_time_limit_truncates_and_keeps_the_last_observation():
    env = make_vec("Pong", 2, 4, atari=short())
    assert env.max_episode_steps == 50
    first = env.reset(seeds=0)
    steps = rollout(env, 101)
    for time, step in enumerate(steps, start=1):
        ended = time % 50 == 0
        assert (step.truncated == ended).all() and not step.terminated.any()
        assert [e.length for e in step.episodes] == [50, 50] * ended
        if ended:
            # The new game's first frame after zeros; the old one's last four frames where the action led.
            assert (step.obs[:, :3] == 0).all() and step.obs[:, 3].any()
            np.testing.assert_array_equal(step.next_obs[:, :3], steps[time - 2].obs[:, 1:])
        else:
            np.testing.assert_array_equal(step.obs, step.next_obs)
    np.testing.assert_array_equal(steps[0].obs[:, 2], first[:, 3])


def test_a_lost_life_ends_the_learners_episode_but_not_the_game():
    with_lives, whole = (
        make_vec("Breakout", 1, 4, atari=envs.atari.dataclasses.replace(CLASSIC, episodic_life=lives))
        for lives in (True, False)
    )
    with_lives.reset(seeds=2)
    whole.reset(seeds=2)
    ours, theirs = rollout(with_lives, 400), rollout(whole, 400)
    game_over = [bool(step.terminated[0]) for step in theirs]
    lost = [bool(step.terminated[0]) for step in ours]
    assert game_over.count(True) >= 1
    # Breakout has five lives: four ends within a game and the game's own.
    end = game_over.index(True)
    assert lost[: end + 1].count(True) == 5 and lost[end]
    shown = 1
    for step, other in zip(ours, theirs, strict=True):
        assert step.episodes == other.episodes, "returns and lengths span all lives"
        np.testing.assert_array_equal(step.next_obs[:, 3], other.next_obs[:, 3])
        shown = min(shown + 1, 4)
        older, newer = np.split(step.next_obs[0], [4 - shown])
        assert not older.any() and newer.any(axis=(1, 2)).all()
        if step.terminated[0]:
            shown = 1
            assert not step.obs[0, :3].any()
            if not other.terminated[0]:
                np.testing.assert_array_equal(step.obs[0, 3], step.next_obs[0, 3])


def test_noop_starts_differ_between_games():
    env = make_vec("Freeway", 4, 4, atari=short(CLASSIC))
    starts = [env.reset(seeds=seed)[:, 3] for seed in range(2)]
    assert len(np.unique(np.concatenate(starts).reshape(8, -1), axis=0)) > 3
    np.testing.assert_array_equal(env.reset(seeds=1)[:, 3], starts[1])


def test_the_three_protocols_are_what_their_files_say():
    def protocol(*files):
        argv = ["--algo", "dqn", "--env", "Asterix"]
        config, _ = loader.load([*argv, "--config", *files] if files else argv)
        assert (config.env.num_envs, config.env.action_repeat) == (4, 4)
        return config.env.atari

    folder = str(loader.CONFIG_DIR / "env")
    assert protocol() == AtariConfig()
    assert protocol(f"{folder}/atari_machado.yaml") == MACHADO
    classic = envs.atari.dataclasses.replace(
        CLASSIC, sticky_unit="frame"
    )  # of no effect without sticky actions
    assert protocol(f"{folder}/atari_classic.yaml") == classic


# Seeds, threads, saving


def test_seeds_both_ways_and_any_number_of_threads():
    first, again, threads = (
        make_vec("DemonAttack", 2, 4, atari=AtariConfig(num_threads=n)) for n in (1, 1, 2)
    )
    for env in (first, again, threads):
        env.reset(seeds=4)
    steps = rollout(first, 80)
    assert_same(steps, rollout(again, 80))
    assert_same(steps, rollout(threads, 80))
    assert (steps[-1].obs[0] != steps[-1].obs[1]).any(), "sub-environments differ"
    again.reset(seeds=5)
    assert (rollout(again, 80)[-1].obs != steps[-1].obs).any()
    again.reset(seeds=4)
    assert_same(steps, rollout(again, 80))


# Demon Attack looks at the timer that the emulator sets randomly at every reset.
@pytest.mark.parametrize(
    "game, config",
    [("DemonAttack", AtariConfig()), ("Breakout", MACHADO), ("Breakout", CLASSIC)],
    ids=["paper", "machado", "classic"],
)
def test_restore_continues_bit_for_bit(game, config, monkeypatch):
    monkeypatch.setattr(envs.atari, "SEED_PERIOD", 60)  # so that the second of three games is not seeded
    env = make_vec(game, 2, 4, atari=short(config))
    env.reset(seeds=5)
    rollout(env, 70)
    state = env.state_dict()
    assert [len(actions) for actions in state["native"]["actions"]] == [70, 70]
    expected = rollout(env, 90)
    assert len(actions_played(env)) == 60, "seeded at the third game's beginning"

    restored = make_vec(game, 2, 4, atari=short(config))
    np.testing.assert_array_equal(restored.load_state_dict(state), state["obs"])
    assert_same(expected, rollout(restored, 90))
    env.load_state_dict(restored.state_dict())
    assert_same(rollout(env, 20), rollout(restored, 20))


@pytest.mark.slow
def test_consoles_seeded_at_different_times_are_restored_together(monkeypatch):
    """Each log is played again so that all reach the present at once."""
    monkeypatch.setattr(envs.atari, "SEED_PERIOD", 60)
    env, restored = (make_vec("Breakout", 3, 4) for _ in range(2))
    env.reset(seeds=1)
    rollout(env, 330)
    state = env.state_dict()
    assert len({len(actions) for actions in state["native"]["actions"]}) == 3
    restored.load_state_dict(state)
    assert_same(rollout(env, 60), rollout(restored, 60))


def test_restore_refuses_another_protocol_and_what_does_not_repeat_itself():
    env = make_vec("Pong", 1, 4)
    env.reset(seeds=0)
    rollout(env, 20)
    state = env.state_dict()
    with pytest.raises(EnvError, match=r"saved with sticky_probability = 0\.25, not 0\.0"):
        make_vec("Pong", 1, 4, atari=PLAIN).load_state_dict(state)
    state["obs"][0, 3, 40, 40] ^= 1
    with pytest.raises(EnvError, match="cannot be resumed exactly"):
        env.load_state_dict(state)


@pytest.mark.parametrize(
    "action, message",
    [
        ([0, 6], "sub-environment 1: action 6 is not 0 to 5"),
        ([-1, 0], "sub-environment 0: action -1"),
        ([0.0, 1.0], "integer actions"),
        ([0], r"shape \(2,\), got \(1,\)"),
    ],
)
def test_wrong_actions(action, message):
    env = make_vec("Pong", 2, 4)
    env.reset(seeds=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.array(action))


def test_returned_arrays_are_the_callers():
    env, other = (make_vec("Pong", 1, 4) for _ in range(2))
    for copy in (env, other):
        copy.reset(seeds=0)
    for _ in range(10):
        action = env.random_action()
        step = env.step(action)
        step.obs[:] = step.next_obs[:] = 7
        other.step(action)
    np.testing.assert_array_equal(env.state_dict()["obs"], other.state_dict()["obs"])


# Evaluation


def test_evaluation_by_steps():
    env = make_vec("Pong", 2, 4, atari=short(PLAIN))
    dropped = evaluate(RandomPolicy(env), env, None, seed=0, steps=2 * 120)
    assert dropped.lengths == (50,) * 4
    counted = evaluate(RandomPolicy(env), env, None, seed=0, steps=2 * 120, unfinished="count")
    assert sorted(counted.lengths) == [20, 20, 50, 50, 50, 50]
    assert sum(counted.lengths) == 240
    cut = evaluate(RandomPolicy(env), env, None, seed=0, steps=41)  # none ends; 41 rounds up to 21 each
    assert cut.lengths == (21, 21)
    first = evaluate(RandomPolicy(env), env, 3, seed=0, steps=2 * 120)
    assert first.lengths == (50,) * 3
    assert evaluate(RandomPolicy(env), env, 3, seed=0) == first  # the limit was never met
    assert evaluate(RandomPolicy(env), env, 3, seed=0, steps=2 * 60).lengths == (50,) * 2
    # Of three games, environment 0 has two to play.
    cut = evaluate(RandomPolicy(env), env, 3, seed=0, steps=2 * 60, unfinished="count")
    assert cut.lengths == (50, 10, 50)
    with pytest.raises(ValueError, match="episodes, of steps, or both"):
        evaluate(RandomPolicy(env), env, None, seed=0)


class Still:
    def act_greedy(self, obs):
        return np.zeros(len(obs), np.int64)


def test_epsilon_explores_at_its_rate_and_repeats_itself():
    env = make_vec("Pong", 2, 4, atari=PLAIN)
    evaluate(Still(), env, None, seed=0, steps=1000, epsilon=0.5)
    moved = np.concatenate([actions_played(env, index) for index in range(2)]) != 0
    # A uniform draw is another action in five cases of six.
    rate = 0.5 * 5 / 6
    assert abs(moved.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / 1000)
    first = [actions_played(env, index) for index in range(2)]
    evaluate(Still(), env, None, seed=0, steps=1000, epsilon=0.5)
    np.testing.assert_array_equal(first, [actions_played(env, index) for index in range(2)])


def test_evaluating_does_not_touch_training():
    alone, beside = (make_vec("Asterix", 2, 4) for _ in range(2))
    evaluated = make_vec("Asterix", 2, 4, "rgb_array")
    for env in (alone, beside):
        env.reset(seeds=0)
    frames = []
    for _ in range(3):
        evaluate(RandomPolicy(evaluated), evaluated, None, seed=9, frames=frames, steps=20, epsilon=0.1)
        assert_same(rollout(alone, 20), rollout(beside, 20))
    assert len(frames) == 30


@pytest.mark.slow
def test_every_game_plays_and_is_restored():
    config = short(AtariConfig(num_threads=1))
    for game in ATARI_SCORES:
        env = make_vec(game, 2, 4, atari=config)
        env.reset(seeds=5)
        rollout(env, 120)
        restored = make_vec(game, 2, 4, atari=config)
        restored.load_state_dict(env.state_dict())
        assert_same(rollout(env, 60), rollout(restored, 60))
