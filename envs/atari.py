"""Atari games on ale-py's C++ vector environment, with what it leaves out.

Left out by ``ale_py.AtariVectorEnv`` 0.12 and added here: sticky actions per agent step, outside the frame skip;
life loss as the end of the learner's episode without restarting the game; raw rewards beside clipped ones; saving
and restoring; a picture in colour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ale_py import ALEInterface, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces

from configs.schema import AtariConfig
from envs.backend import Transition, agent_steps
from envs.errors import EnvError

# Mnih et al. 2015, Methods, "Preprocessing".
SCREEN_SIZE = 84
STACK = 4
FRAMES_PER_SECOND = 60  # of the emulated console
# The emulator draws from a generator of its own: its timer at every reset (which some games look at, such as Assault),
# no-op starts, sticky frames. It can therefore only be restored by playing again everything since it was last seeded.
# Seeding loads the cartridge anew, 0.2 s; at this period (transitions) that is about 2 % of the time of playing.
SEED_PERIOD = 20_000


class AtariBackend:
    """``Backend`` of copies of one game in one ale-py vector.

    Observations are (R, 4, 84, 84) uint8, oldest frame first, zeros before an episode's first frame. A lost life can
    be ``terminated`` without the game being ``over``.

    Args:
        game: cartridge, such as ``beam_rider``.
        num_rows: copies.
        frame_skip: frames for which an action is held; the last two are pooled by their maximum.
        config: the protocol.
        picture: whether ``render`` will be asked for.
    """

    frames_per_second = float(FRAMES_PER_SECOND)

    def __init__(
        self, game: str, num_rows: int, frame_skip: int, config: AtariConfig, picture: bool = False
    ) -> None:
        self._config = config
        self._protocol = {**dataclasses.asdict(config), "game": game, "frame_skip": frame_skip}
        del self._protocol["num_threads"]  # never changes a result
        self._consoles = Consoles(game, num_rows, frame_skip, config, picture)
        self.max_episode_steps = agent_steps(config.max_frames, frame_skip)
        self.observation_space: spaces.Box = spaces.Box(0, 255, (STACK, SCREEN_SIZE, SCREEN_SIZE), np.uint8)
        self.action_space: spaces.Box | spaces.Discrete = spaces.Discrete(self._consoles.num_actions)
        self._sticky = config.sticky_probability if config.sticky_unit == "step" else 0.0
        self._episode_seed = np.zeros(num_rows, dtype=np.int64)
        self._steps = np.zeros(num_rows, dtype=np.int64)  # of the present game
        self._console_seed = np.zeros(num_rows, dtype=np.int64)
        self._log = [bytearray() for _ in range(num_rows)]  # actions played since the console was seeded
        self._last_action = np.zeros(num_rows, dtype=np.int64)  # which a sticky step repeats
        self._lives = np.zeros(num_rows, dtype=np.int64)
        self._shown = np.ones(num_rows, dtype=np.int64)  # frames of the learner's episode in the stack
        self._generators = [np.random.default_rng(0)] * num_rows
        self._obs = np.zeros((num_rows, *self.observation_space.shape), dtype=np.uint8)

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        return self._begin(np.arange(len(self._log)), seeds, must_seed=True)

    def restart(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        return self._begin(rows, seeds, must_seed=False)

    def step(self, actions: np.ndarray) -> Transition:
        actions = self._stick(actions)
        for log, action in zip(self._log, actions.tolist(), strict=True):
            log.append(action)
        self._steps += 1
        next_obs, reward, terminated, truncated, lives = self._consoles.step(actions)
        over = terminated | truncated
        lost_life = (lives < self._lives) & ~over & self._config.episodic_life
        self._lives = lives
        self._shown = np.minimum(self._shown + 1, STACK)
        self._blank(next_obs, self._shown)
        self._obs = next_obs
        if lost_life.any():
            self._shown[lost_life] = 1
            self._obs = next_obs.copy()
            self._blank(self._obs, self._shown)
        to_learn = np.sign(reward) if self._config.reward_clipping else reward
        return Transition(next_obs, self._obs, reward, to_learn, terminated | lost_life, truncated, over)

    def state_dict(self, rows: slice) -> dict[str, Any]:
        """Return seeds, counters and the actions played since the consoles were seeded."""
        native = {
            "protocol": self._protocol,
            "episode_seed": self._episode_seed[rows].copy(),
            "console_seed": self._console_seed[rows].copy(),
            "steps": self._steps[rows].copy(),
            "held": self._last_action[rows].copy(),
            "shown": self._shown[rows].copy(),
            "actions": [np.frombuffer(bytes(log), np.uint8).copy() for log in self._log[rows]],
        }
        return {"native": native}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray:
        saved = [state["native"] for state in states]
        for native in saved:
            for name, ours in self._protocol.items():
                theirs = native["protocol"].get(name)
                if theirs != ours:
                    raise EnvError(f"the state was saved with {name} = {theirs!r}, not {ours!r}")

        def joined(name: str) -> np.ndarray:
            return np.concatenate([np.asarray(native[name]) for native in saved]).astype(np.int64)

        self._episode_seed, self._console_seed = joined("episode_seed"), joined("console_seed")
        self._steps, self._last_action, self._shown = joined("steps"), joined("held"), joined("shown")
        played = [actions for native in saved for actions in native["actions"]]
        self._log = [bytearray(np.asarray(actions, dtype=np.uint8).tobytes()) for actions in played]
        self._obs, self._lives = self._replay()
        self._blank(self._obs, self._shown)
        for row, seed in enumerate(self._episode_seed):
            self._generators[row] = np.random.default_rng(seed)
            if self._sticky:
                self._generators[row].random(self._steps[row])
        return self._obs

    def render(self) -> np.ndarray:
        return self._consoles.picture()

    def close(self) -> None:
        del self._consoles  # which stops the emulators

    def _begin(self, rows: np.ndarray, seeds: Sequence[int], must_seed: bool) -> np.ndarray:
        """Start a new game in ``rows``; return what to act on in all."""
        mask = np.zeros(len(self._log), dtype=np.bool_)
        mask[rows] = True
        played = np.array([len(log) for log in self._log])
        seeded = mask & (must_seed | (played >= SEED_PERIOD))
        self._episode_seed[rows] = seeds
        self._console_seed[seeded] = self._episode_seed[seeded] & 0x7FFFFFFF  # a C int
        for row in np.flatnonzero(seeded):
            self._log[row].clear()
        obs, self._lives = self._consoles.reset(mask, np.where(seeded, self._console_seed, -1))
        self._obs = np.where(mask[:, None, None, None], obs, self._obs)
        self._steps[rows] = self._last_action[rows] = 0
        self._shown[rows] = 1
        for row in rows.tolist():
            self._generators[row] = np.random.default_rng(self._episode_seed[row])
        return self._obs

    def _stick(self, actions: np.ndarray) -> np.ndarray:
        """Keep the last action played with the sticky probability; a game's first can be replaced by a no-op."""
        if self._sticky:
            drawn = np.array([generator.random() for generator in self._generators])
            actions = np.where(drawn < self._sticky, self._last_action, actions)
        self._last_action = actions
        return actions

    def _blank(self, obs: np.ndarray, shown: np.ndarray) -> None:
        """Zero the frames of a stack that are older than the learner's episode, in place."""
        for index in np.flatnonzero(shown < STACK):
            obs[index, : STACK - shown[index]] = 0

    def _replay(self) -> tuple[np.ndarray, np.ndarray]:
        """Play every log again so that all end together; return observations and lives."""
        lengths = np.array([len(log) for log in self._log])
        start = lengths.max() - lengths
        everywhere, unseeded = np.ones(len(lengths), dtype=np.bool_), np.full(len(lengths), -1)
        obs, lives = self._consoles.reset(everywhere, unseeded)
        for time in range(lengths.max() + 1):
            if (starting := start == time).any():
                obs, lives = self._consoles.reset(starting, np.where(starting, self._console_seed, -1))
            if time == lengths.max():
                break
            # Those whose turn has not come idle; how they fare is forgotten when they start.
            playing = start <= time
            actions = [
                log[time - first] if first <= time else 0 for log, first in zip(self._log, start, strict=True)
            ]
            obs, _, terminated, truncated, lives = self._consoles.step(np.array(actions))
            if (ended := (terminated | truncated) & playing).any():
                obs, lives = self._consoles.reset(ended, unseeded)
        return obs, lives


class Consoles:
    """The emulators alone: frame skip, pooling, grey picture, stacking, time limit.

    With ``picture`` a twin of sub-environment 0 plays the same game in colour.
    """

    def __init__(self, game: str, num_envs: int, frame_skip: int, config: AtariConfig, picture: bool) -> None:
        protocol: dict[str, Any] = {
            "frameskip": frame_skip,
            "repeat_action_probability": config.sticky_probability if config.sticky_unit == "frame" else 0.0,
            "full_action_space": config.full_action_set,
            "max_num_frames_per_episode": config.max_frames,
            "noop_max": config.noop_max + 1 if config.noop_max else 0,  # theirs is exclusive
            "use_fire_reset": config.fire_reset,
            "reward_clipping": False,
            # Theirs starts a new game at every life.
            "episodic_life": False,
            # Nothing is reset by itself as long as every game that is over is reset before the next step.
            "autoreset_mode": "NextStep",
        }
        shape: dict[str, Any] = {"img_height": SCREEN_SIZE, "img_width": SCREEN_SIZE, "stack_num": STACK}
        self._grey = AtariVectorEnv(game, num_envs, num_threads=config.num_threads, **shape, **protocol)
        self._colour = None
        if picture:
            height, width = screen_shape(game)
            shape = {"img_height": height, "img_width": width, "stack_num": 1, "grayscale": False}
            self._colour = AtariVectorEnv(game, 1, num_threads=1, **shape, **protocol)
            self._picture, _ = self._colour.reset()
        self._grey.reset()  # the first must be of all
        actions = self._grey.single_action_space
        assert isinstance(actions, spaces.Discrete)
        self.num_actions = int(actions.n)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reset where ``mask`` (N,) holds, reseeding where ``seeds`` is not -1; return observations and lives."""
        options = {"reset_mask": mask}
        obs, info = self._grey.reset(seed=seeds[mask], options=options)
        if self._colour is not None and mask[0]:
            self._picture, _ = self._colour.reset(seed=seeds[:1])
        return obs, info["lives"].astype(np.int64)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return observations, raw rewards, terminated, truncated, lives."""
        obs, reward, terminated, truncated, info = self._grey.step(actions)
        if self._colour is not None:
            self._picture = self._colour.step(actions[:1])[0]
        return obs, reward.astype(np.float64), terminated, truncated, info["lives"].astype(np.int64)

    def picture(self) -> np.ndarray:
        """Return the colour picture of sub-environment 0, (height, width, 3) uint8."""
        return self._picture[0, 0].copy()


def screen_shape(game: str) -> tuple[int, int]:
    """Return height and width of a game's picture in pixels: 210 x 160, 250 x 160 for some."""
    console = ALEInterface()
    cartridge = roms.get_rom_path(game)
    assert cartridge is not None, game
    console.loadROM(cartridge)
    return console.getScreenDims()
