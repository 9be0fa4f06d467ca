"""Atari games on ale-py's C++ vector environment, with what it leaves out.

Left out by ``ale_py.AtariVectorEnv`` 0.12 and added here: sticky actions per agent step, outside the frame skip;
life loss as the end of the learner's episode without restarting the game; raw rewards beside clipped ones; saving
and restoring; a picture in colour.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from ale_py import ALEInterface, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces

from configs.schema import AtariConfig
from envs.errors import EnvError

# Mnih et al. 2015, Methods, "Preprocessing".
SCREEN_SIZE = 84
STACK = 4
FRAMES_PER_SECOND = 60  # of the emulated console
# The emulator draws from a generator of its own: its timer at every reset (which some games look at, such as Assault),
# no-op starts, sticky frames. It can therefore only be restored by playing again everything since it was last seeded.
# Seeding loads the cartridge anew, 0.2 s; at this period (transitions) that is about 2 % of the time of playing.
SEED_PERIOD = 20_000


class AtariVector:
    """N copies of one game: resets on demand, never by itself; the rest as ``gymnasium.vector.VectorEnv``.

    Observations are (N, 4, 84, 84) uint8, oldest frame first, zeros before an episode's first frame.

    Args:
        game: cartridge, such as ``beam_rider``.
        num_envs: N.
        frame_skip: frames for which an action is held; the last two are pooled by their maximum.
        config: the protocol.
        picture: whether ``picture`` will be asked for.
    """

    metadata = {"render_fps": FRAMES_PER_SECOND}  # noqa: RUF012

    def __init__(
        self, game: str, num_envs: int, frame_skip: int, config: AtariConfig, picture: bool = False
    ) -> None:
        self._config = config
        self._protocol = {**dataclasses.asdict(config), "game": game, "frame_skip": frame_skip}
        del self._protocol["num_threads"]  # never changes a result
        self._consoles = Consoles(game, num_envs, frame_skip, config, picture)
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(0, 255, (STACK, SCREEN_SIZE, SCREEN_SIZE), np.uint8)
        self.single_action_space = spaces.Discrete(self._consoles.num_actions)
        self._sticky = config.sticky_probability if config.sticky_unit == "step" else 0.0
        self._episode_seed = np.zeros(num_envs, dtype=np.int64)
        self._steps = np.zeros(num_envs, dtype=np.int64)  # of the present game
        self._console_seed = np.zeros(num_envs, dtype=np.int64)
        self._log = [bytearray() for _ in range(num_envs)]  # actions played since the console was seeded
        self._held = np.zeros(num_envs, dtype=np.int64)  # action that a sticky step repeats
        self._lives = np.zeros(num_envs, dtype=np.int64)
        self._shown = np.ones(num_envs, dtype=np.int64)  # frames of the learner's episode in the stack
        self._generators = [np.random.default_rng(0)] * num_envs
        self.forget()

    def forget(self) -> None:
        """Make the next reset independent of everything played so far."""
        self._must_seed = True

    def reset(self, seed: list[int], options: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new game where ``options["reset_mask"]`` (N,) bool holds; return all present observations.

        Args:
            seed: of every sub-environment's next game, 32 bits each; unused where no reset is asked for.
            options: with the mask.
        """
        mask = options["reset_mask"]
        if mask.any():
            played = np.array([len(log) for log in self._log])
            seeded = mask & (self._must_seed | (played >= SEED_PERIOD))
            self._must_seed = False
            self._episode_seed[mask] = np.asarray(seed)[mask]
            self._console_seed[seeded] = self._episode_seed[seeded] & 0x7FFFFFFF  # a C int
            for index in np.flatnonzero(seeded):
                self._log[index].clear()
            obs, self._lives = self._consoles.reset(mask, np.where(seeded, self._console_seed, -1))
            self._obs = np.where(mask[:, None, None, None], obs, self._obs) if not mask.all() else obs
            self._steps[mask] = self._held[mask] = 0
            self._shown[mask] = 1
            for index in np.flatnonzero(mask):
                self._generators[index] = np.random.default_rng(self._episode_seed[index])
        return self._obs, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Play one agent step everywhere; games that are over must be reset before the next.

        Args:
            actions: (N,) int64.

        Returns:
            observations where the actions led, raw rewards (N,) float64, terminated, truncated, and infos:
            ``game_over`` (N,) bool (false where only a life was lost) and ``learner_reward`` (N,), clipped if so
            configured.
        """
        actions = self._stick(actions)
        for log, action in zip(self._log, actions.tolist(), strict=True):
            log.append(action)
        self._steps += 1
        obs, reward, terminated, truncated, lives = self._consoles.step(actions)
        over = terminated | truncated
        lost_life = (lives < self._lives) & ~over & self._config.episodic_life
        self._lives = lives
        self._shown = np.minimum(self._shown + 1, STACK)
        self._blank(obs, self._shown)
        self._obs = obs
        if lost_life.any():
            self._shown[lost_life] = 1
            self._obs = obs.copy()
            self._blank(self._obs, self._shown)
        infos = {
            "game_over": over,
            "learner_reward": np.sign(reward) if self._config.reward_clipping else reward,
        }
        return obs, reward, terminated | lost_life, truncated, infos

    def picture(self, index: int) -> np.ndarray:
        """Return the console's picture, (height, width, 3) uint8; only of sub-environment 0."""
        if index:
            raise ValueError(f"only sub-environment 0 has a picture, not {index}")
        return self._consoles.picture()

    def get_state(self) -> dict[str, Any]:
        """Return what ``set_state`` needs: seeds, counters and the actions played since the consoles were seeded."""
        return {
            "protocol": self._protocol,
            "episode_seed": self._episode_seed.copy(),
            "console_seed": self._console_seed.copy(),
            "steps": self._steps.copy(),
            "held": self._held.copy(),
            "shown": self._shown.copy(),
            "actions": [np.frombuffer(bytes(log), np.uint8).copy() for log in self._log],
        }

    def set_state(self, state: dict[str, Any]) -> np.ndarray:
        """Take up a saved state by playing its actions again; return the observations reached.

        Raises:
            EnvError: the state was saved under another protocol.
        """
        for name, ours in self._protocol.items():
            if state["protocol"].get(name) != ours:
                raise EnvError(
                    f"the state was saved with {name} = {state['protocol'].get(name)!r}, not {ours!r}"
                )
        self._must_seed = False
        for name in ("episode_seed", "console_seed", "steps", "held", "shown"):
            setattr(self, f"_{name}", np.array(state[name], dtype=np.int64))
        self._log = [bytearray(np.asarray(actions, dtype=np.uint8).tobytes()) for actions in state["actions"]]
        self._obs, self._lives = self._replay()
        self._blank(self._obs, self._shown)
        for index, seed in enumerate(self._episode_seed):
            self._generators[index] = np.random.default_rng(seed)
            if self._sticky:
                self._generators[index].random(self._steps[index])
        return self._obs

    def close(self) -> None:
        """Stop the emulators."""
        del self._consoles

    def _stick(self, actions: np.ndarray) -> np.ndarray:
        """Keep the last action played with the sticky probability; a game's first can be replaced by a no-op."""
        if self._sticky:
            drawn = np.array([generator.random() for generator in self._generators])
            actions = np.where(drawn < self._sticky, self._held, actions)
        self._held = actions
        return actions

    def _blank(self, obs: np.ndarray, shown: np.ndarray) -> None:
        """Zero the frames of a stack that are older than the learner's episode, in place."""
        for index in np.flatnonzero(shown < STACK):
            obs[index, : STACK - shown[index]] = 0

    def _replay(self) -> tuple[np.ndarray, np.ndarray]:
        """Play every log again so that all end together; return observations and lives."""
        lengths = np.array([len(log) for log in self._log])
        start = lengths.max() - lengths
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        obs, lives = self._consoles.reset(everywhere, np.full(self.num_envs, -1))
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
                obs, lives = self._consoles.reset(ended, np.full(self.num_envs, -1))
        return obs, lives


class Consoles:
    """The emulators alone: frame skip, pooling, grey picture, stacking, time limit.

    With ``picture`` a twin of sub-environment 0 plays the same game in colour.
    """

    def __init__(self, game: str, num_envs: int, frame_skip: int, config: AtariConfig, picture: bool) -> None:
        protocol = {
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
        shape = {"img_height": SCREEN_SIZE, "img_width": SCREEN_SIZE, "stack_num": STACK}
        self._grey = AtariVectorEnv(game, num_envs, num_threads=config.num_threads, **shape, **protocol)
        self._colour = None
        if picture:
            height, width = screen_shape(game)
            shape = {"img_height": height, "img_width": width, "stack_num": 1, "grayscale": False}
            self._colour = AtariVectorEnv(game, 1, num_threads=1, **shape, **protocol)
            self._picture, _ = self._colour.reset()
        self._grey.reset()  # the first must be of all
        self.num_actions = int(self._grey.single_action_space.n)

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
    console.loadROM(roms.get_rom_path(game))
    return console.getScreenDims()
