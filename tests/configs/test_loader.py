"""Configuration: every YAML loads, layers merge in order, wrong input is one clear line."""

import dataclasses
from pathlib import Path

import pytest

from configs import loader, schema
from configs.errors import ConfigError
from fire.options import OPTIONS
from fire.triggers import TriggerConfig

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
        assert type(config.strategy) is OPTIONS[config.reset.strategy]


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
    assert config.strategy.shrink_factor == 0.7


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
    assert (published.strategy.method, published.strategy.num_iters) == ("newton_schulz", 10)
    assert load("--reset", "fire").strategy.method == "polar"


def test_trigger_options_are_checked():
    config = load(
        "--reset.trigger.metric", "plasticity/critic/dormant_ratio", "--reset.trigger.threshold", "0.3"
    )
    assert (config.trigger.metric, config.trigger.threshold) == ("plasticity/critic/dormant_ratio", 0.3)
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
    "--preset slow": r"--preset slow: unknown; valid: paper, quick",
    "--agent.critc-width 3": r"'--agent.critc-width'; did you mean --agent.critic-width\?",
    "--total-steps many": r"total_steps must be int, got 'many'",
    "--total-steps 1.5": r"total_steps must be int, got '1.5'",
    "--total-steps 0": r"total_steps must be at least 1, got 0",
    "--agent.gamma 1.2": r"agent.gamma must be at most 1, got 1.2",
    "--agent.learning-rate nan": r"agent.learning_rate must be at least 0",
    "--device tpu": r"device must be one of auto, cpu, cuda; got 'tpu'",
    "--reset.scale big": r"reset.scale must be one of paper",
    "--reset.strength 2": r"reset.strength",
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
    options = loader.entries("sac", "fire")
    for path in options:
        if path not in {selected for selected, _ in loader.SELECTORS.values()} | {"reset.strategy"}:
            assert "--" + path.replace("_", "-") in text
    assert "[env steps] (default: 20000)" in text  # the quick preset's, not the dataclass's


@pytest.mark.parametrize(
    "cls", [schema.Config, *schema.AGENT_CONFIGS.values(), *OPTIONS.values(), TriggerConfig]
)
def test_options_are_documented(cls):
    for field in dataclasses.fields(cls):
        if field.default is not None and dataclasses.is_dataclass(field.default):
            continue
        if field.name in ("agent", "strategy", "trigger"):
            continue
        assert field.metadata["help"], f"{cls.__name__}.{field.name} has no help"


def test_env_files_serve_both_spellings_and_the_family():
    files = [loader.named_files("sac", env, "fire", "paper") for env in ("h1-walk", "h1-walk-v0", "h1-run")]
    assert files[0] == files[1] == files[2]
    assert Path(loader.CONFIG_DIR / "env/h1.yaml") in files[0]
    assert load("--env", "h1-run").env.action_repeat == 2
    assert load("--env", "Pendulum-v1").env.action_repeat == 1
