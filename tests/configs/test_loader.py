"""Configuration: every YAML loads, layers merge in order, wrong input is one clear line."""

import dataclasses
import re
import shutil
import typing
from pathlib import Path

import pytest
import yaml

from configs import loader, schema
from configs.command_line import UNFLAGGED
from configs.errors import ConfigError
from fire.fields import option
from fire.options import OPTIONS, FireOptions
from training.folder import default_run_dir

YAMLS = sorted(loader.CONFIG_DIR.rglob("*.yaml"))
PRESETS = [(algo, preset) for algo in schema.AGENT_CONFIGS for preset in loader.presets(algo)]


def load(*argv):
    return loader.load(argv)[0]


@pytest.mark.parametrize("algo, preset", PRESETS)
@pytest.mark.parametrize("reset", loader.resets())
def test_every_combination_of_named_files_loads(algo, preset, reset):
    for env in ("Unlisted-v0", *(p.stem for p in (loader.CONFIG_DIR / "env").glob("*.yaml"))):
        argv = ("--algo", algo, "--preset", preset, "--reset", reset, "--env", env)
        config = load(*argv)
        assert (config.algo, config.preset, config.reset.name, config.env.id) == (algo, preset, reset, env)
        assert type(config.reset.options) is OPTIONS[config.reset.strategy]


def test_every_yaml_in_the_repository_is_reachable_and_says_where_its_values_come_from():
    reachable = set()
    for algo, preset in PRESETS:
        for reset in loader.resets():
            stems = {p.stem for p in (loader.CONFIG_DIR / "env").glob("*.yaml")}
            stems |= {
                p.stem.removeprefix(f"{algo}-") for p in loader.CONFIG_DIR.glob(f"preset/*/{algo}-*.yaml")
            }
            for env in stems:
                reachable |= set(loader.named_files(algo, env, reset, preset))
    assert set(YAMLS) == reachable
    for path in YAMLS:
        assert path.read_text().startswith("# "), f"{path} does not begin with its source"


def test_paper_preset_holds_the_papers_constants():
    """facts: SimBa's configuration and FIRE's SAC protocol, 1M frames at action repeat 2."""
    config = load("--preset", "paper")
    assert config.total_steps * config.env.action_repeat == 1_000_000
    assert (config.replay.batch_size, config.replay.replay_ratio, config.replay.learning_starts) == (
        256,
        2.0,
        5_000,
    )
    agent = config.agent
    assert (agent.actor_width, agent.actor_blocks, agent.critic_width, agent.critic_blocks) == (
        128,
        1,
        512,
        2,
    )
    assert (agent.learning_rate, agent.weight_decay, agent.target_tau) == (1e-4, 1e-2, 0.005)
    assert (agent.init_temperature, agent.target_entropy_per_action, agent.gamma) == (0.01, -0.5, None)
    assert config.reset.at == (250_000,)


def test_paper_preset_of_dqn():
    config = load("--algo", "dqn", "--env", "CartPole-v1", "--preset", "paper")
    assert (config.total_steps, config.env.num_envs, config.replay.batch_size) == (2_500_000, 4, 32)
    agent = config.agent
    assert (agent.learning_rate, agent.adam_eps, agent.target_update_period) == (6.25e-5, 1.5e-4, 2_000)
    assert (agent.epsilon_end, agent.epsilon_fraction, config.replay.learning_starts) == (0.01, 0.1, 20_000)


def test_later_layers_win(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("seed: 1\nagent: {critic_width: 64, actor_width: 16}\n")
    second.write_text("agent: {critic_width: 96}\nreset: {name: shrink_perturb, shrink_factor: 0.7}\n")
    config = load("--config", str(first), str(second), "--seed", "3")
    assert (config.seed, config.agent.critic_width, config.agent.actor_width) == (3, 96, 16)
    assert config.reset.options.shrink_factor == 0.7
    assert load("--config", str(first), "--config", str(second), "--seed", "3") == config
    assert load("--config", str(second), "--config", str(first)).agent.critic_width == 64
    assert load("--config", str(first), str(second), str(first)).agent.critic_width == 64


def test_the_configuration_has_the_shape_of_its_yaml():
    """Attributes are the YAML's keys; the strategy's options alone stand beside those of ``reset``."""
    config = load("--algo", "dqn", "--env", "Breakout", "--reset", "redo", "--reset.trigger.patience", "3")
    nested = yaml.safe_load(loader.dump(config))

    def shape(section):
        found = {}
        for name, value in vars(section).items():
            inner = shape(value) if dataclasses.is_dataclass(value) else value
            found |= inner if section is config.reset and name == "options" else {name: inner}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    assert nested == shape(config)
    assert nested["env"]["atari"]["max_frames"] == config.env.atari.max_frames == 108_000
    assert nested["reset"]["trigger"]["patience"] == config.reset.trigger.patience == 3
    assert nested["reset"]["dormancy_threshold"] == config.reset.options.dormancy_threshold == 0.1


def test_no_field_of_the_configuration_is_untyped():
    def hints(cls):
        for name, hint in typing.get_type_hints(cls).items():
            assert hint is not typing.Any, f"{cls.__name__}.{name}"
            for each in typing.get_args(hint) or (hint,):
                if dataclasses.is_dataclass(each):
                    hints(each)

    hints(schema.Config)
    for agent in schema.AGENT_CONFIGS.values():
        assert issubclass(agent, schema.AgentConfig)
        hints(agent)


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    every: int = option(0, "period of videos", "env steps", minimum=0)


def test_a_new_section_needs_a_line_of_the_schema_alone(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Longer(schema.Config):
        video: VideoConfig = VideoConfig()

    monkeypatch.setattr(loader, "Config", Longer)
    assert load().video == VideoConfig(0)
    config = load("--video.every", "5")
    assert config.video == VideoConfig(5)
    path = tmp_path / "config.yaml"
    path.write_text(loader.dump(config))
    assert loader.read_config(path) == config
    with pytest.raises(ConfigError, match=r"'--video\.evry'; did you mean --video\.every\?"):
        load("--video.evry", "5")


def test_a_new_algorithm_needs_its_dataclass_and_yaml_alone(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class TD3Config:
        policy_delay: int = option(2, "critic updates per actor update", minimum=1)

    shutil.copytree(loader.CONFIG_DIR, tmp_path / "configs")
    (tmp_path / "configs/algo/td3.yaml").write_text("replay: {batch_size: 100}\n")
    (tmp_path / "configs/preset/paper/td3.yaml").write_text("agent: {policy_delay: 3}\n")
    monkeypatch.setattr(loader, "CONFIG_DIR", tmp_path / "configs")
    monkeypatch.setitem(schema.AGENT_CONFIGS, "td3", TD3Config)
    config = load("--algo", "td3")
    assert (config.agent, config.replay.batch_size) == (TD3Config(3), 100)
    assert load("--algo", "td3", "--agent.policy-delay", "5").agent == TD3Config(5)


def test_two_options_of_one_name_are_a_mistake_of_ours(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Clashing(FireOptions):
        every: int = option(0, "stands beside reset.every")

    monkeypatch.setitem(OPTIONS, "fire", Clashing)
    with pytest.raises(TypeError, match=r"reset\.every is defined twice"):
        load()


def test_what_is_shown_names_the_file_or_flag_that_set_each_value(tmp_path):
    own = tmp_path / "my values.yaml"
    own.write_text("preset: quick\nagent: {critic_width: 96, actor_width: 16}\nreset: {every: 9000}\n")
    argv = [
        "--config",
        str(own),
        "--agent.actor_width",
        "32",
        "--env",
        "h1-run",
        "--reset.at",
        "6000",
        "7000",
    ]
    config, flags = loader.load(argv)
    text = loader.dump(config, flags.origins)
    assert yaml.safe_load(text) == yaml.safe_load(loader.dump(config))
    path = tmp_path / "shown.yaml"
    path.write_text(text)
    assert load("--config", str(path)) == config == loader.read_config(path)

    origins, section = {}, []
    for line in text.splitlines():
        indent, key, value, origin = re.fullmatch(r"( *)([^:]+):(?: (.*?) +# (.*))?", line).groups()
        section[len(indent) // 2 :] = [key.strip("'")]
        if value is not None:
            origins[".".join(section)] = origin
    assert origins.keys() == loader.options_of(config).keys()
    assert origins["seed"] == origins["algo"] == origins["reset.name"] == "default"
    assert origins["preset"] == origins["agent.critic_width"] == origins["reset.every"] == str(own)
    assert origins["agent.actor_width"] == "--agent.actor-width"
    assert origins["reset.at"] == "--reset.at"
    assert origins["env.id"] == "--env"
    # A file or "default" is named rightly if it holds the value.
    defaults = loader.flatten_config(loader.build({"algo": "sac", "reset.strategy": "fire"}))
    shown = loader.flatten_config(config)
    seen = set()
    for option_path, origin in origins.items():
        if origin == "default":
            assert shown[option_path] == defaults[option_path], option_path
        elif not origin.startswith("--"):
            seen.add(origin)
            values = yaml.safe_load((loader.CONFIG_DIR.parent / origin).read_text())
            for key in option_path.split("."):
                values = values[key]
            assert shown[option_path] == values, option_path
    assert {"configs/algo/sac.yaml", "configs/env/h1.yaml", "configs/preset/quick/sac.yaml"} <= seen


def test_flags_take_dashes_underscores_lists_and_bare_booleans():
    config = load(
        "--algo", "dqn", "--env", "CartPole-v1", "--agent.hidden_widths", "32", "16", "--agent.double-q",
        "--reset.at", "100", "200", "--agent.learning-rate=1e-3", "--total_steps", "1e6", "--reset.until", "null",
    )  # fmt: skip
    assert config.agent.hidden_widths == (32, 16)
    assert config.agent.double_q is True
    assert config.reset.at == (100, 200)
    assert config.agent.learning_rate == 1e-3
    assert config.total_steps == 1_000_000 and isinstance(config.total_steps, int)
    assert config.reset.until is None
    assert load("--agent.target-entropy-per-action", "-1e-1").agent.target_entropy_per_action == -0.1


def test_reset_names_choose_a_strategy_and_its_options():
    published = load("--reset", "fire_paper_sac")
    assert (published.reset.name, published.reset.strategy) == ("fire_paper_sac", "fire")
    assert (published.reset.options.method, published.reset.options.num_iters) == ("newton_schulz", 10)
    assert load("--reset", "fire").reset.options.method == "polar"


def test_options_behind_a_resets_name_are_those_of_its_flags(tmp_path):
    name = "fire:scale=unit,strength=0.5,include=a*+b,reset.trigger.patience=4,agent.gamma=0.9"
    short = load("--reset", name)
    flags = "--reset.scale unit --reset.strength 0.5 --reset.include a* b --agent.gamma 0.9"
    long = load("--reset", "fire", *flags.split(), "--reset.trigger.patience", "4")
    assert short.reset.name == name and short.reset.options.include == ("a*", "b")
    assert dataclasses.replace(short, reset=dataclasses.replace(short.reset, name="fire")) == long
    assert load("--reset", name, "--reset.scale", "paper").reset.options.scale == "paper"
    assert str(default_run_dir(short)).startswith(
        "runs/sac-h1-walk-fire_scale=unit_strength=0.5_include=a_+b_"
    )
    path = tmp_path / "config.yaml"
    path.write_text(loader.dump(short))
    assert loader.read_config(path) == short == load("--config", str(path))


def test_trigger_options_are_checked():
    config = load(
        "--reset.trigger.metric", "plasticity/critic/dormant_ratio", "--reset.trigger.threshold", "0.3"
    )
    assert (config.reset.trigger.metric, config.reset.trigger.threshold) == (
        "plasticity/critic/dormant_ratio",
        0.3,
    )
    with pytest.raises(ConfigError, match=r"reset\.trigger\.direction must be one of above, below"):
        load("--reset.trigger.direction", "sideways")
    with pytest.raises(ConfigError, match=r"reset\.trigger\.patience"):
        load("--reset.trigger.patience", "0")


def test_dump_reads_back_equal(tmp_path):
    config = load("--reset", "shrink_perturb", "--reset.shrink-factor", "0.3", "--reset.at", "5", "6")
    path = tmp_path / "config.yaml"
    path.write_text(loader.dump(config))
    assert loader.read_config(path) == config
    assert load("--config", str(path)) == config


WRONG = {
    "--algo ppo": r"--algo ppo: unknown; valid: dqn, sac",
    "--reset fyre": r"--reset fyre: unknown; valid: .*fire.*full",
    "--preset slow": r"--preset slow: unknown; valid: laptop, paper, quick",
    "--agent.critc-width 3": r"'--agent.critc-width'; did you mean --agent.critic-width\?",
    "--total-steps many": r"total_steps must be int, got 'many'",
    "--total-steps 1.5": r"total_steps must be int, got '1.5'",
    "--total-steps 0": r"total_steps must be at least 1, got 0",
    "--agent.gamma 1.2": r"agent.gamma must be at most 1, got 1.2",
    "--agent.learning-rate nan": r"agent.learning_rate must be a finite number, got 'nan'",
    "--agent.learning-rate -1": r"agent.learning_rate must be at least 0, got -1.0",
    "--agent.target-entropy-per-action nan": r"target_entropy_per_action must be a finite number, got 'nan'",
    "--replay.replay-ratio inf": r"replay.replay_ratio must be a finite number, got 'inf'",
    "--seed 1:30": r"seed must be int, got '1:30'",
    "--seed 0x10": r"seed must be int, got '0x10'",
    "--seed inf": r"seed must be int, got 'inf'",
    "--reset.until -5": r"reset.until must be at least 0, got -5",
    "--device tpu": r"device must be one of auto, cpu, cuda; got 'tpu'",
    "--reset.scale big": r"reset.scale must be one of paper",
    "--reset.strength 2": r"reset.strength",
    "--reset fyre:scale=unit": r"--reset fyre: unknown; valid: .*fire.*full",
    "--reset fire:scale=big": r"--reset fire:scale=big: reset.scale must be one of paper",
    "--reset fire:scael=unit": r"--reset fire:scael=unit: unknown option 'reset.scael'; did you mean 'reset.scale'",
    "--reset fire:scale": r"--reset fire:scale: 'scale' is not option=value",
    "--reset fire:": r"--reset fire:: '' is not option=value",
    "--reset fire:strategy=full": r"unknown option 'reset.strategy'",
    "--reset.at 0": r"reset.at must be at least 1",
    "--eval.around-resets maybe": r"eval.around_resets must be true/false, got 'maybe'",
    "--config missing.yaml": r"cannot read configuration file missing.yaml",
    "stray": r"unknown argument 'stray'",
    "--seed @1": r"seed must be int, got '@1'",
    "--agent.gamma [1": r"agent.gamma must be float, got '\[1'",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_one_line_naming_value_and_choices(line):
    with pytest.raises(ConfigError, match=WRONG[line]) as caught:
        load(*line.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("agent: {critic_with: 3}", "unknown option 'agent.critic_with'; did you mean 'agent.critic_width'"),
        ("agent: 3", "unknown option 'agent'"),
        ("seed: [1]", "seed must be int"),
        ("seed: true", "seed must be int"),
        ("- 1", "must hold a mapping"),
        ("a: [", "not valid YAML"),
        ("env: {id: 5}", "env.id must be text, got 5"),
        ("algo: [sac]", "--algo .'sac'.: unknown"),
    ],
)
def test_wrong_yaml_is_one_line(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load("--config", str(path))
    assert "\n" not in str(caught.value)


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        load("--preset", "quick", "--algo", "sac", "--env", "Unlisted-v0", "--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for path in loader.options_of(load()):
        if path not in UNFLAGGED:
            assert "--" + path.replace("_", "-") in text
    assert "[env steps] (default: 20000)" in text  # the quick preset's, not the dataclass's


@pytest.mark.parametrize("algo", schema.AGENT_CONFIGS)
@pytest.mark.parametrize("strategy", OPTIONS)
def test_options_are_documented(algo, strategy):
    options = loader.options_of(loader.build({"algo": algo, "reset.strategy": strategy}))
    assert len(options) > 60
    for path, documented in options.items():
        assert documented.help, f"{path} has no help"


def test_env_files_serve_both_spellings_and_the_family():
    files = [loader.named_files("sac", env, "fire", "paper") for env in ("h1-walk", "h1-walk-v0", "h1-run")]
    assert files[0] == files[1] == files[2]
    assert Path(loader.CONFIG_DIR / "env/h1.yaml") in files[0]
    assert load("--env", "h1-run").env.action_repeat == 2
    assert load("--env", "Pendulum-v1").env.action_repeat == 1


@pytest.mark.parametrize(
    "robot", ["h1-walk", "h1hand-push", "h1strong-highbar_hard", "h1touch-walk", "g1-walk"]
)
def test_every_robot_of_the_official_package_has_the_protocol_of_the_h1_tasks(robot):
    argv = ("--algo", "sac", "--preset", "paper", "--env")
    expected = loader.flatten_config(load(*argv, "h1-walk"))
    got = loader.flatten_config(load(*argv, f"humanoid_bench:{robot}-v0"))
    assert {path for path in got if got[path] != expected[path]} == {"env.id"}
    assert load(*argv, "g1-walk-v0").env.action_repeat == 1, "an id of someone else"
