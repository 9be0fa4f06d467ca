"""The table of algorithms against the options that the command line knows, and what is refused."""

import pytest
import torch
from gymnasium import spaces

from agents import AGENTS, make_agent
from configs import loader
from configs.errors import ConfigError
from configs.schema import AGENT_CONFIGS

BOX, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)


def make(algo, obs_shape=(4,), actions=None, *flags):
    env = "Pendulum-v1" if AGENTS[algo].actions is spaces.Box else "CartPole-v1"
    config, _ = loader.load(["--algo", algo, "--env", env, "--preset", "quick", *flags])
    actions = actions or (BOX if AGENTS[algo].actions is spaces.Box else DISCRETE)
    return make_agent(config, spaces.Box(-1, 1, obs_shape), actions, 200, torch.device("cpu"))


def test_every_row_has_the_options_of_the_command_line():
    assert {name: row.options for name, row in AGENTS.items()} == AGENT_CONFIGS


@pytest.mark.parametrize("algo", AGENTS)
def test_every_algorithm_is_built_from_a_configuration_and_declares_what_it_has(algo):
    agent = make(algo)
    assert type(agent) is AGENTS[algo].agent
    assert {"explore", *agent.streams} == set(agent.generators)
    assert set(agent.optimizers.values()) <= set(agent.modules) and agent.policy in agent.modules
    assert (agent.epsilon(0) is None) == (algo != "dqn")
    for part in ("temperature", "normalizer"):
        if part in agent.resettable:
            make(algo, (4,), None, f"--reset.{part}", "reset")
        else:
            getattr(agent, f"reset_{part}")()  # neutral
            with pytest.raises(ConfigError, match=f"{algo} has no {part}; valid: keep"):
                make(algo, (4,), None, f"--reset.{part}", "reset")


@pytest.mark.parametrize("algo", AGENTS)
def test_every_optimizer_has_the_betas_of_the_options(algo):
    agent = make(algo, (4,), None, "--agent.adam-betas", "0.5", "0.7")
    groups = [group for name in agent.optimizers for group in getattr(agent, name).param_groups]
    assert groups and all(tuple(group["betas"]) == (0.5, 0.7) for group in groups)
    with pytest.raises(ConfigError, match=r"adam_betas must be two numbers below 1, got \[0.9, 1.0\]"):
        make(algo, (4,), None, "--agent.adam-betas", "0.9", "1")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"td3 needs Box actions, but .* has Discrete.*; use --algo dqn"):
        make("td3", (4,), DISCRETE)
    with pytest.raises(ConfigError, match=r"dqn needs Discrete actions, but .* use --algo sac or td3 or xqc"):
        make("dqn", (4,), BOX)
    with pytest.raises(ConfigError, match=r"sac needs flat observations, but .* has \(4, 84, 84\)"):
        make("sac", (4, 84, 84))
    with pytest.raises(ConfigError, match="td3 has no network 'q'; valid: actor, critic"):
        make("td3", (4,), None, "--reset.networks", "q")
