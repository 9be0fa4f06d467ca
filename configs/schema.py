"""The options of a run as frozen dataclasses, nested as the YAML is; their defaults and help texts document them.

A field that holds a dataclass is a section. A new one needs a line here and nothing elsewhere; one whose class depends
on another option, a row of ``CHOSEN_SECTIONS`` too.

Unless an option says otherwise, steps are environment steps: transitions collected, summed over environments.
Values that reproduce a paper stand in ``configs/`` with their source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fire.fields import option
from fire.options import OPTIONS, FireOptions, ResetOptions
from fire.triggers import TriggerConfig


@dataclass(frozen=True)
class AtariConfig:
    """How Atari games are played; the defaults are FIRE's protocol (see configs/env/atari.yaml)."""

    sticky_probability: float = option(
        0.25, "probability that the action played before is repeated instead", minimum=0, maximum=1
    )
    sticky_unit: str = option(
        "step",
        "what is repeated: a whole env step, outside the action repeat, or a single frame, by the emulator",
        choices=("step", "frame"),
    )
    full_action_set: bool = option(False, "all 18 actions of the console; false: those the game uses")
    noop_max: int = option(
        0, "a game starts with 0 to this many no-ops, drawn uniformly", "frames", minimum=0
    )
    fire_reset: bool = option(
        False, "press fire for one frame at a game's start, where the game has the action"
    )
    episodic_life: bool = option(
        False, "a lost life ends the learner's episode; the game goes on, and its return spans all lives"
    )
    reward_clipping: bool = option(True, "learn from the sign of the rewards; returns stay raw")
    max_frames: int = option(108_000, "length at which a game is truncated", "frames", minimum=1)
    num_threads: int = option(0, "threads of the emulators; 0: one per core, at most num_envs", minimum=0)


@dataclass(frozen=True)
class PhysicsConfig:
    """Ranges of the factors on physical quantities, of which every task draws one each, uniformly in the logarithm."""

    gravity: tuple[float, ...] = option(
        (1.0, 1.0), "range of the factor on gravity; 1 1: as it is", minimum=0
    )
    friction: tuple[float, ...] = option((1.0, 1.0), "of that on the friction of every contact", minimum=0)
    strength: tuple[float, ...] = option((1.0, 1.0), "of that on the force of every actuator", minimum=0)
    mass: tuple[float, ...] = option((1.0, 1.0), "of that on masses and inertias of all bodies", minimum=0)
    length: tuple[float, ...] = option((1.0, 1.0), "of that on the length of a pole or link", minimum=0)
    speed: tuple[float, ...] = option((1.0, 1.0), "of that on the speed that an H1 task asks for", minimum=0)

    def __post_init__(self) -> None:
        for name, bounds in self.ranges().items():
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(
                    f"{name} must be two numbers above 0, the lower one first, got {list(bounds)}"
                )

    def ranges(self) -> dict[str, tuple[float, ...]]:
        """Return the range of every quantity by its name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class ChangeConfig:
    """Tasks that change: what, how often, and what the agent does then (``reset.on_change`` beside it)."""

    kind: str = option(
        "none",
        "what makes a new task: a random orthonormal map of the observation (rotate), the same map turned a little "
        "(drift), permuted or sign-flipped actions (actions), other physics (physics), the next of several "
        "environments (sequence)",
        choices=("none", "rotate", "drift", "actions", "physics", "sequence"),
    )
    every: int = option(0, "length of a task, a multiple of env.num_envs", "env steps", minimum=0)
    dims: int = option(
        0, "rotate, drift: numbers observed, at least as many as the environment gives; 0: as many", minimum=0
    )
    angle: float = option(
        0.5,
        "drift: about the angle by which a new task turns an observation (its skew matrix has entries of standard "
        "deviation angle / sqrt(dims))",
        "rad",
        minimum=0,
    )
    standardize_steps: int = option(
        1_000,
        "rotate, drift: random play before the run whose mean and standard deviation standardise observations for "
        "good; 0: they are mapped as they are",
        "env steps",
        minimum=0,
    )
    ids: tuple[str, ...] = option((), "sequence: environments with equal spaces, one after the other, cyclic")
    physics: PhysicsConfig = PhysicsConfig()
    replay: str = option(
        "keep", "stored transitions at a change: keep them, or clear them", choices=("keep", "clear")
    )
    exploration: str = option(
        "keep",
        "DQN's epsilon at a change: keep its schedule, or restart it, from start to end",
        choices=("keep", "restart"),
    )
    exploration_steps: int = option(
        1_000, "steps over which a restarted epsilon falls", "env steps", minimum=0
    )
    evaluate_previous: bool = option(
        False, "at the end of each task, evaluate on the one before it, too (forgetting)"
    )

    def __post_init__(self) -> None:
        if self.kind == "none":
            return
        if not self.every:
            raise ValueError(f"every must be above 0 with kind {self.kind}, got 0")
        if self.kind == "sequence" and len(self.ids) < 2:
            raise ValueError(
                f"ids must name two environments or more with kind sequence, got {list(self.ids)}"
            )
        if self.kind == "physics" and self.physics == PhysicsConfig():
            names = ", ".join(f"physics.{name}" for name in self.physics.ranges())
            raise ValueError(f"kind physics changes nothing: give a range to one of {names}")

    @property
    def period(self) -> int:
        """Length of a task in env steps; 0: there is one task only."""
        return 0 if self.kind == "none" else self.every

    def task_trained(self, env_step: int) -> int:
        """Return the number of the task to which transition ``env_step`` belongs (the first one is 1)."""
        return max(env_step - 1, 0) // self.period if self.period else 0


@dataclass(frozen=True)
class EnvConfig:
    """The training and evaluation environments."""

    id: str = option("h1-walk", "task or game by name, or any Gymnasium id with flat observations")
    num_envs: int = option(1, "training environments stepped together", minimum=1)
    action_repeat: int = option(
        1, "times each action is applied; rewards are summed", "frames per env step", minimum=1
    )
    atari: AtariConfig = AtariConfig()
    change: ChangeConfig = ChangeConfig()

    def __post_init__(self) -> None:
        if self.change.period % self.num_envs:
            raise ValueError(
                f"change.every {self.change.every} must be a multiple of num_envs {self.num_envs}, so that every task "
                "has exactly as many steps"
            )
        if self.change.kind == "sequence" and self.change.ids[0] != self.id:
            raise ValueError(f"change.ids must begin with env.id {self.id}, got {self.change.ids[0]}")

    def task_id(self, task: int) -> str:
        """Return the environment that is played in ``task``."""
        ids = self.change.ids if self.change.kind == "sequence" else (self.id,)
        return ids[task % len(ids)]


@dataclass(frozen=True)
class ReplayConfig:
    """Collecting and replaying transitions."""

    replay_capacity: int = option(
        1_000_000, "transitions held; the oldest are overwritten", "transitions", minimum=1
    )
    learning_starts: int = option(
        5_000, "uniformly random actions and no updates before this", "env steps", minimum=0
    )
    batch_size: int = option(256, "transitions per gradient update", minimum=1)
    replay_ratio: float = option(
        1.0, "gradient updates per transition collected, fractions allowed", "updates", minimum=0
    )
    n_step: int = option(1, "rewards summed before bootstrapping", "transitions", minimum=1)


@dataclass(frozen=True)
class AgentConfig:
    """What every algorithm has."""

    adam_betas: tuple[float, ...] = option(
        (0.9, 0.999), "decay of Adam's means of gradients and of their squares", minimum=0, maximum=1
    )
    weight_decay: float = option(0.0, "decoupled weight decay of the networks: AdamW's", minimum=0)
    l2_init: float = option(0.0, "strength of the L2 Init term added to every loss", minimum=0)
    parseval: float = option(0.0, "strength of the Parseval term added to every loss", minimum=0)

    def __post_init__(self) -> None:
        if len(self.adam_betas) != 2 or max(self.adam_betas) == 1:
            raise ValueError(f"adam_betas must be two numbers below 1, got {list(self.adam_betas)}")

    @property
    def betas(self) -> tuple[float, float]:
        """``adam_betas``, of which there are two."""
        return self.adam_betas[0], self.adam_betas[1]


@dataclass(frozen=True)
class SACConfig(AgentConfig):
    """Soft actor-critic on SimBa networks; defaults are SimBa's (arXiv 2410.09754, sac_simba configuration)."""

    actor_width: int = option(128, "width of the actor's residual stream", minimum=1)
    actor_blocks: int = option(1, "residual blocks of the actor", minimum=0)
    critic_width: int = option(512, "width of each critic's residual stream", minimum=1)
    critic_blocks: int = option(2, "residual blocks of each critic", minimum=0)
    num_critics: int = option(2, "critics, of which targets take the minimum", minimum=1)
    learning_rate: float = option(1e-4, "AdamW step size of actor, critics and temperature", minimum=0)
    weight_decay: float = option(1e-2, "decoupled weight decay of the networks: AdamW's", minimum=0)
    gamma: float | None = option(
        None,
        "discount per env step; null: 1 - 5/L in [0.95, 0.995], L the episode limit",
        minimum=0,
        maximum=1,
    )
    target_tau: float = option(
        0.005, "share of the online critics mixed into their target at every update", minimum=0, maximum=1
    )
    init_temperature: float = option(0.01, "entropy coefficient at the start", minimum=1e-12)
    target_entropy_per_action: float = option(-0.5, "target entropy per action dimension", "nats")


@dataclass(frozen=True)
class DQNConfig(AgentConfig):
    """Deep Q-learning; defaults are those of the FIRE and ReDo protocols where they apply to an MLP."""

    hidden_widths: tuple[int, ...] = option(
        (120, 84), "hidden layers of the MLP for flat observations", minimum=1
    )
    pixel_network: str = option(
        "nature",
        "convolutional network for frames: that of Mnih et al. 2015, or the third as large one of Mnih et al. 2013 "
        "(nips)",
        choices=("nature", "nips"),
    )
    layer_norm: bool = option(
        False,
        "a layer norm before each hidden ReLU, over channels and positions behind a convolution (Lyle et al. 2024, "
        "arXiv 2407.01800): the cure without resets that every reset must be compared with",
    )
    learning_rate: float = option(6.25e-5, "Adam step size", minimum=0)
    adam_eps: float = option(1.5e-4, "Adam epsilon", minimum=0)
    gamma: float = option(0.99, "discount per env step", minimum=0, maximum=1)
    double_q: bool = option(False, "Double DQN: the online network selects the bootstrap action")
    loss: str = option(
        "huber",
        "of the TD error: Huber with threshold 1 (Mnih et al. 2015 clip its gradient so), or its square (mse), as in "
        "CleanRL",
        choices=("huber", "mse"),
    )
    target_update_period: int = option(
        2_000, "updates between hard copies into the target network", "updates", minimum=1
    )
    epsilon_start: float = option(1.0, "exploration rate until learning starts", minimum=0, maximum=1)
    epsilon_end: float = option(0.01, "final exploration rate", minimum=0, maximum=1)
    epsilon_fraction: float = option(
        0.1, "share of total_steps over which epsilon falls linearly", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class TD3Config(AgentConfig):
    """TD3; defaults are those of Fujimoto et al. 2018, arXiv 1802.09477, section 6.1."""

    hidden_widths: tuple[int, ...] = option((400, 300), "hidden layers of actor and critics", minimum=1)
    learning_rate: float = option(1e-3, "Adam step size of actor and critics", minimum=0)
    gamma: float = option(0.99, "discount per env step", minimum=0, maximum=1)
    policy_period: int = option(
        2, "the actor and all targets change in every so many-th update only", "updates", minimum=1
    )
    target_tau: float = option(
        0.005, "share of the online networks mixed into their targets when these change", minimum=0, maximum=1
    )
    target_noise: float = option(
        0.2, "standard deviation of the noise on the target policy's actions", minimum=0
    )
    target_noise_clip: float = option(0.5, "largest size of that noise", minimum=0)
    exploration_noise: float = option(0.1, "standard deviation of the noise on the actions taken", minimum=0)


@dataclass(frozen=True)
class XQCConfig(AgentConfig):
    """XQC: SAC with well-conditioned critics; defaults are those of arXiv 2509.25174 and its released code."""

    actor_widths: tuple[int, ...] = option((256, 256, 256, 256), "hidden layers of the actor", minimum=1)
    critic_widths: tuple[int, ...] = option((512, 512, 512, 512), "hidden layers of each critic", minimum=1)
    num_critics: int = option(2, "critics, of which targets take the one with the smaller value", minimum=1)
    num_atoms: int = option(101, "values over which each critic's distribution is spread evenly", minimum=2)
    value_limit: float = option(
        5.0, "largest size of these values, in standard deviations of the discounted return", minimum=1e-6
    )
    learning_rate: float = option(3e-4, "Adam step size of actor, critics and temperature", minimum=0)
    gamma: float | None = option(
        None,
        "discount per env step; null: 1 - 5/L in [0.95, 0.995], L the episode limit",
        minimum=0,
        maximum=1,
    )
    policy_period: int = option(
        3,
        "actor and temperature change in the first of every so many updates only",
        "updates",
        minimum=1,
    )
    target_tau: float = option(
        0.005, "share of the online critics mixed into their target at every update", minimum=0, maximum=1
    )
    init_temperature: float = option(0.01, "entropy coefficient at the start", minimum=1e-12)
    target_entropy_per_action: float = option(-0.5, "target entropy per action dimension", "nats")


AGENT_CONFIGS: dict[str, type[AgentConfig]] = {
    "sac": SACConfig,
    "dqn": DQNConfig,
    "td3": TD3Config,
    "xqc": XQCConfig,
}


@dataclass(frozen=True)
class ResetConfig:
    """When networks are reset, how, and what beside them."""

    # The loader adds the options of that file; without it they are the strategy's defaults, which are fire_paper's.
    name: str = option("fire", "reset as chosen by --reset: a file in configs/reset/")
    strategy: str = option("fire", "reset strategy, an entry of fire.options.OPTIONS")
    every: int = option(0, "reset whenever this many steps have passed; 0: never", "env steps", minimum=0)
    at: tuple[int, ...] = option((), "further reset points", "env steps", minimum=1)
    on_change: bool = option(
        False, "reset at every change of tasks (env.change), of which other resets are not told"
    )
    warmup: int = option(0, "no reset before this", "env steps", minimum=0)
    until: int | None = option(None, "no periodic reset after this; null: to the end", "env steps", minimum=0)
    networks: tuple[str, ...] = option(
        (), "networks to reset (sac, td3, xqc: actor, critic; dqn: q); empty: all"
    )
    temperature: str = option(
        "keep",
        "entropy coefficient of SAC and XQC at a reset: keep, or reset to init_temperature",
        choices=("keep", "reset"),
    )
    normalizer: str = option(
        "keep",
        "statistics of SAC's observation normaliser at a reset: keep, or reset to those of a new run",
        choices=("keep", "reset"),
    )
    # The strategy's own options; their keys stand beside those above.
    options: ResetOptions = dataclasses.field(default=FireOptions(), metadata={"inline": True})
    trigger: TriggerConfig = dataclasses.field(default=TriggerConfig())


@dataclass(frozen=True)
class EvalConfig:
    """Greedy episodes in separate environments."""

    every: int = option(
        25_000, "evaluation period; 0: only at the end and around resets", "env steps", minimum=0
    )
    episodes: int = option(
        10, "episodes per evaluation; with eval.steps the random policy alone plays by them", minimum=1
    )
    steps: int = option(
        0, "length of an evaluation instead of a number of episodes; 0: eval.episodes", "env steps", minimum=0
    )
    unfinished: str = option(
        "drop",
        "episodes that are cut off: drop them (unless none has ended), or count their return so far",
        choices=("drop", "count"),
    )
    max_episode_steps: int = option(
        10_000,
        "length at which an episode is cut off where the environment has no time limit of its own, treated as "
        "eval.unfinished says; five times the longest limit among Gymnasium's own tasks",
        "env steps",
        minimum=1,
    )
    epsilon: float = option(0.0, "share of actions drawn uniformly", minimum=0, maximum=1)
    num_envs: int = option(1, "evaluation environments stepped together", minimum=1)
    around_resets: bool = option(True, "evaluate right before and right after every reset")


@dataclass(frozen=True)
class LogConfig:
    """What is written to TensorBoard and scalars.csv, and how often."""

    every: int = option(1_000, "period of rollout, time and train scalars", "env steps", minimum=0)
    metrics_every: int = option(
        25_000, "period of the plasticity metrics; 0: only around resets", "env steps", minimum=0
    )
    probe_size: int = option(256, "replayed transitions on which plasticity metrics are measured", minimum=2)
    dormancy_threshold: float = option(
        0.1, "a unit is dormant when its normalised activation is at most this", minimum=0
    )
    expensive_metrics: bool = option(
        False,
        "with the plasticity metrics also curvature, gradient agreement, co-adaptation, trial updates and the "
        "trainability probe: seconds to minutes each time",
    )
    histograms: bool | None = option(
        None,
        "histograms of every layer's singular values, in TensorBoard: true, whenever plasticity is measured; null, "
        "before and after resets alone, of networks that take at most about a second; false, never",
    )
    video: bool = option(
        False,
        "an episode as a moving picture, in TensorBoard: of the random policy, before and after each reset, of the end",
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints, from which the same command resumes bit by bit."""

    every: int = option(
        50_000, "period; the end and Ctrl-C always save; 0: only those", "env steps", minimum=0
    )
    keep: int = option(1, "newest checkpoints kept, beside the policy of the best evaluation", minimum=1)
    at: tuple[int, ...] = option(
        (),
        "further checkpoints, which are kept for good: other runs branch from them",
        "env steps",
        minimum=1,
    )


@dataclass(frozen=True)
class Config:
    """A whole run."""

    algo: str = option("sac", "agent and its update rule")
    preset: str = option(
        "paper", "named set of values: the paper's protocol, a quick run, or one for a laptop"
    )
    seed: int = option(0, "run seed, from which every random stream is derived", minimum=0)
    num_agents: int = option(
        1, "runs trained as one batched program, with seeds seed, seed + 1, ..., a folder each", minimum=1
    )
    total_steps: int = option(500_000, "length of the run", "env steps", minimum=1)
    branch_from: str | None = option(
        None,
        "start from a checkpoint of another run (its folder, or the run's for the newest) instead of from nothing, "
        "so that several resets share one beginning; {seed} in it stands for the run's seed",
    )
    device: str = option(
        "auto",
        "where networks and replay live; of several GPUs the first that CUDA_VISIBLE_DEVICES leaves",
        choices=("auto", "cpu", "cuda"),
    )
    num_threads: int = option(0, "CPU threads of PyTorch; 0: PyTorch's own choice", minimum=0, maximum=1024)
    precision: str = option(
        "float32",
        "of the products in losses and gradients: float32, tf32 (CUDA), or bf16 (autocast; parameters, optimizers and "
        "output layers stay float32); acting, resets and metrics are float32",
        choices=("float32", "tf32", "bf16"),
    )
    compile: bool = option(
        False,
        "torch.compile the losses, meant for CUDA: on the CPUs measured it was no faster, after minutes of compiling",
    )
    cuda_graphs: bool = option(
        True,
        "on CUDA, replay acting and the updates of a step as recorded graphs instead of kernel by kernel",
    )
    act_lag: int = option(
        0,
        "0: act with the newest parameters; 1: act before the updates that the last step brought due, so that "
        "environments and updates run at the same time",
        choices=(0, 1),
    )
    profile: bool = option(
        False,
        "profile 20 steps of the loop: profile.json (Chrome trace) in the run folder, ten dearest operations",
    )
    logger: str = option(
        "none",
        "a tracker that gets the same scalars as TensorBoard: wandb (Weights & Biases) or trackio, which are installed "
        "apart (requirements-loggers.txt)",
        choices=("none", "wandb", "trackio"),
    )
    env: EnvConfig = EnvConfig()
    replay: ReplayConfig = ReplayConfig()
    agent: AgentConfig = SACConfig()
    reset: ResetConfig = ResetConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        if self.total_steps <= self.replay.learning_starts:
            raise ValueError(
                f"total_steps {self.total_steps} must exceed replay.learning_starts "
                f"{self.replay.learning_starts}, or nothing is learned"
            )
        if self.reset.on_change and not self.env.change.period:
            raise ValueError("reset.on_change true needs tasks that change: env.change.kind is none")
        if self.reset.trigger.metric and not self.log.metrics_every:
            raise ValueError(
                "reset.trigger.metric needs metrics to be measured: log.metrics_every must be above 0, got 0"
            )


class ChosenSection(NamedTuple):
    """A section whose class is chosen by the value of an option."""

    option: str
    classes: Mapping[str, type]


# By the section's attributes in Config, joined by dots.
CHOSEN_SECTIONS = {
    "agent": ChosenSection("algo", AGENT_CONFIGS),
    "reset.options": ChosenSection("reset.strategy", OPTIONS),
}
