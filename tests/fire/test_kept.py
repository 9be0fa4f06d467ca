"""What a reset keeps: figures against NumPy, PyTorch's distributions and closed forms, and in the report of a reset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from agents.dqn import DQN
from agents.replay import Batch
from agents.sac import SAC
from agents.td3 import TD3
from configs.schema import DQNConfig, SACConfig, TD3Config
from fire.metrics.kept import Behaviour, correlation, gaussian_kl, kept, linear_cka
from fire.resets.registry import reset_networks
from tests.fire.fire_networks import batch_for, make_slot, strategy

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def test_kl_is_that_of_pytorchs_distributions_and_unmoved_by_tanh() -> None:
    old, new = (draws(50, 3, seed=1), draws(50, 3, seed=2)), (draws(50, 3, seed=3), draws(50, 3, seed=4))
    normals = [torch.distributions.Normal(m.double(), s.double().exp()) for m, s in (old, new)]
    expected = torch.distributions.kl_divergence(*normals).sum(-1).mean()
    torch.testing.assert_close(gaussian_kl(*old, *new), expected)
    assert gaussian_kl(*old, *old).item() == pytest.approx(0, abs=1e-12)
    x = draws(50, 3, seed=5).double().clamp(-3, 3)
    squashed = [
        torch.distributions.TransformedDistribution(n, torch.distributions.TanhTransform(cache_size=1))
        for n in normals
    ]
    y = squashed[0].transforms[0](x)
    difference = squashed[0].log_prob(y) - squashed[1].log_prob(y)
    torch.testing.assert_close(
        difference, normals[0].log_prob(x) - normals[1].log_prob(x), rtol=1e-6, atol=1e-6
    )


def test_cka_against_its_definition_and_its_invariances() -> None:
    x, y = draws(60, 7).double(), draws(60, 11, seed=1).double()
    y[:, :4] += 2 * x[:, :4]
    a, b = (f.numpy() - f.numpy().mean(0) for f in (x, y))
    norm = np.linalg.norm
    expected = norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b))
    assert linear_cka(x, y).item() == pytest.approx(expected, rel=1e-10)
    assert 0.1 < expected < 0.9
    rotation, _ = torch.linalg.qr(draws(7, 7, seed=2).double())
    assert linear_cka(x, 3 * x @ rotation + 5).item() == pytest.approx(1, abs=1e-10)
    # Two features that do not covary at all.
    one, other = torch.tensor([1.0, 1, -1, -1])[:, None], torch.tensor([1.0, -1, 1, -1])[:, None]
    assert linear_cka(one, other).item() == pytest.approx(0, abs=1e-12)


def test_correlation_is_numpys() -> None:
    x, y = draws(2, 30), draws(2, 30, seed=1) + draws(2, 30)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(correlation(x, y).numpy(), expected, rtol=1e-6)


def test_figures_that_do_not_exist_are_left_out() -> None:
    flat = Behaviour(torch.tensor([1, 2, 2, 0]), torch.ones(1, 4), torch.zeros(1, 4, 3))
    assert kept(flat, flat._replace(policy=torch.tensor([1, 2, 1, 0]))) == {"greedy_agreement": 0.75}
    assert kept(Behaviour(None, None, None), Behaviour(None, None, None)) == {}


def test_networks_of_an_ensemble_are_averaged() -> None:
    values, features = draws(2, 20), draws(2, 20, 5)
    before = Behaviour(None, values, features)
    after = Behaviour(
        None, torch.stack([values[0], -values[1]]), torch.stack([features[0], draws(20, 5, seed=9)])
    )
    figures = kept(before, after)
    assert figures["value_correlation"] == pytest.approx(0, abs=1e-6)
    expected = (1 + linear_cka(features[1], draws(20, 5, seed=9)).item()) / 2
    assert figures["feature_cka"] == pytest.approx(expected)


def agents() -> dict[str, tuple]:
    obs, action = draws(64, 5), draws(64, 3, seed=1).clamp(-1, 1)
    parts = (draws(64, seed=2), torch.full((64,), 0.99), draws(64, 5, seed=3))
    discrete = torch.randint(3, (64,), generator=generator(4))
    return {
        "dqn": (DQN(DQNConfig(hidden_widths=(16, 8)), (5,), 3, 0, 100, 0, CPU), Batch(obs, discrete, *parts)),
        "sac": (SAC(SACConfig(actor_width=8, critic_width=8), 5, 3, 500, 0, CPU), Batch(obs, action, *parts)),
        "td3": (TD3(TD3Config(hidden_widths=(16, 8)), 5, 3, 0, CPU), Batch(obs, action, *parts)),
    }


POLICY = {
    "dqn": ("q", "greedy_agreement", 1.0),
    "sac": ("actor", "policy_kl", 0.0),
    "td3": ("actor", "action_mse", 0.0),
}


@pytest.mark.parametrize("algo", ["dqn", "sac", "td3"])
def test_a_report_says_what_was_kept(algo: str) -> None:
    agent, batch = agents()[algo]
    network, key, same = POLICY[algo]
    for name in ("optimizer_only", "full"):
        report = reset_networks(agent.networks(), strategy(name), batch, generator(1), batch)
        is_same = name == "optimizer_only"
        assert set(report.kept) == set(agent.networks())
        assert (report.kept[network][key] == pytest.approx(same, abs=1e-12)) == is_same
        for each, figures in report.kept.items():
            expected = {"feature_cka"} | ({key} if each == network else set())
            expected |= {"value_correlation"} if each in ("q", "critic") else set()
            assert set(figures) == expected
            for figure in expected & {"feature_cka", "value_correlation"}:
                assert (figures[figure] == pytest.approx(1)) == is_same
                assert report.scalars()[f"reset/{each}/{figure}"] == figures[figure]


def test_a_reset_that_multiplies_all_values_keeps_order_and_correlation() -> None:
    agent, batch = agents()["dqn"]
    reset_networks(agent.networks(), strategy("fire", scale="unit"), batch, generator(1))
    with torch.no_grad():
        for layer in (agent.q.hidden1, agent.q.hidden2, agent.q.output):
            layer.weight.mul_(1.7)
            nn.init.normal_(layer.bias, std=0.3, generator=generator(2))
    report = reset_networks(
        agent.networks(), strategy("fire", scale="fresh_norm", biases="rescale"), batch, generator(3), batch
    )
    assert report.kept["q"]["greedy_agreement"] == 1.0
    assert report.kept["q"]["value_correlation"] == pytest.approx(1, abs=1e-6)
    assert report.kept["q"]["feature_cka"] == pytest.approx(1, abs=1e-6)


def test_nobody_looks_without_a_probe_batch() -> None:
    report = reset_networks({"net": make_slot("mlp")}, strategy("fire"), batch_for("mlp"), generator())
    assert report.kept == {}


def test_looking_leaves_no_trace_and_runs_the_network_once_before_and_once_after() -> None:
    slot = make_slot("conv")
    sizes = []
    forward = slot.forward

    def counted(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return forward(batch)

    slot.forward = counted
    statistics = slot.module[1].running_mean.clone()
    random_state = torch.get_rng_state()
    reset_networks({"net": slot}, strategy("fire"), None, generator(), batch_for("conv")[:4])
    assert sizes == [4, 4] and slot.module.training
    assert torch.equal(slot.module[1].running_mean, statistics)
    assert torch.equal(random_state, torch.get_rng_state())
