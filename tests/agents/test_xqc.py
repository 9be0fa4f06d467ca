"""XQC: losses and one update against float64 NumPy, batch norm against PyTorch's, reward scale, what a stack leaves."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents import losses
from agents.normalized import BatchNorm, RewardNormalizer, unit_weights
from agents.replay import Batch
from agents.xqc import XQC
from configs.schema import XQCConfig
from fire.resets.registry import REGISTRY, reset_networks

OBS, ACTION, BATCH, ATOMS = 4, 2, 12, 11
CONFIG = XQCConfig(actor_widths=(8, 6), critic_widths=(10, 8), num_atoms=ATOMS, learning_rate=1e-2)


def make(seed=0):
    return XQC(CONFIG, OBS, ACTION, 500, 1, seed, torch.device("cpu"))


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = 1 + 2 * torch.randn(2, BATCH, OBS, generator=g)
    action = torch.rand(BATCH, ACTION, generator=g) * 2 - 1
    discount = torch.where(torch.rand(BATCH, generator=g) < 0.3, 0.0, 0.99)
    return Batch(obs, action, torch.randn(BATCH, generator=g), discount, next_obs)


# The algorithm once more, in float64 NumPy and with loops.


def array(tensor):
    return tensor.detach().double().numpy()


def batch_norm(norm, x, index, training):
    weight, mean, var = (array(t if index is None else t[index]) for t in (norm.weight, norm.mean, norm.var))
    bias = 0.0 if norm.bias is None else array(norm.bias if index is None else norm.bias[index])
    if training:
        mean, var = x.mean(0), x.var(0)
    return (x - mean) / np.sqrt(var + 0.001) * weight + bias


def features(encoder, x, index, training):
    x = batch_norm(encoder.norm0, x, index, training)
    for number in (1, 2):
        weight = encoder.get_submodule(f"hidden{number}").weight
        x = x @ array(weight if index is None else weight[index]).T
        x = np.maximum(batch_norm(encoder.get_submodule(f"norm{number}"), x, index, training), 0)
    return x


def policy(actor, obs, noise, training):
    hidden = features(actor.encoder, obs, None, training)
    mean, log_std = (hidden @ array(h.weight).T + array(h.bias) for h in (actor.mean, actor.log_std))
    log_std = np.clip(log_std, -10, 2)
    before = mean + np.exp(log_std) * noise
    density = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(before) ** 2)
    return np.tanh(before), density.sum(1)


def probabilities(critic, index, obs, action, training):
    hidden = features(critic.encoder, np.concatenate([obs, action], 1), index, training)
    logits = hidden @ array(critic.value.weight[index]).T + array(critic.value.bias[index])
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def projected(atoms, reward, discount, probs, bonus):
    """Atom by atom: each one's mass to the neighbours of where it moves."""
    target = np.zeros((len(reward), len(atoms)))
    width = atoms[1] - atoms[0]
    for b in range(len(reward)):
        for z, p in zip(atoms, probs[b], strict=True):
            place = np.clip(reward[b] + discount[b] * (z - bonus[b]), atoms[0], atoms[-1])
            position = (place - atoms[0]) / width
            low = min(int(np.floor(position)), len(atoms) - 2)
            target[b, low] += p * (low + 1 - position)
            target[b, low + 1] += p * (position - low)
    return target


ATOM_VALUES = np.linspace(-5, 5, ATOMS)


def written_out(agent, data, noise):
    """Critic loss and mean Q-value of ``agent`` as it is."""
    obs, action, reward, discount, next_obs = map(array, data)
    next_action, log_prob = policy(agent.actor, next_obs, array(noise), training=False)
    both = np.concatenate([obs, next_obs]), np.concatenate([action, next_action])
    following = [probabilities(agent.target_critic, e, *both, training=True)[BATCH:] for e in range(2)]
    values = np.stack([p @ ATOM_VALUES for p in following])
    probs = np.stack([following[e][b] for b, e in enumerate(values.argmin(0))])
    reward = reward * float(agent.reward_normalizer.scale)
    alpha = np.exp(array(agent.temperature.log_alpha))
    target = projected(ATOM_VALUES, reward, discount, probs, alpha * log_prob)
    np.testing.assert_allclose(target.sum(1), 1)
    current = [probabilities(agent.critic, e, *both, training=True)[:BATCH] for e in range(2)]
    loss = sum(-(target * np.log(p)).sum(1).mean() for p in current)
    return loss, np.mean([p @ ATOM_VALUES for p in current])


def test_updates_equal_the_algorithm_written_out():
    """Losses of four updates with the agent's own state before each, and what an update does beside gradients."""
    agent = make()
    for number in range(4):
        agent.observe_rewards(np.float32([number + 0.5]), np.array([number == 2]))
        data, noise = batch(number), torch.randn(2, BATCH, ACTION)
        before = copy.deepcopy({name: getattr(agent, name) for name in agent.modules})
        expected, q_mean = written_out(agent, data, noise[1])
        found = agent.learn(data, noise)
        assert found["critic_loss"].item() == pytest.approx(expected, rel=1e-5)
        assert found["q_mean"].item() == pytest.approx(q_mean, abs=1e-5)
        assert ("actor_loss" in found) == (number in (0, 3))
        if "actor_loss" in found:  # with the new critic by its running statistics, old actor and temperature
            obs, alpha = array(data.obs), np.exp(array(before["temperature"].log_alpha))
            action, log_prob = policy(before["actor"], obs, array(noise[0]), training=True)
            q = [probabilities(agent.critic, e, obs, action, False) @ ATOM_VALUES for e in range(2)]
            expected = (alpha * log_prob - np.minimum(*q)).mean()
            assert found["actor_loss"].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert found["entropy"].item() == pytest.approx(-log_prob.mean(), rel=1e-4)
            assert found["ent_coef_loss"].item() == pytest.approx(alpha * (-log_prob.mean() + 1), rel=1e-4)
        else:
            assert all(map(torch.equal, agent.actor.parameters(), before["actor"].parameters()))
        statistics = array(agent.actor.encoder.norm0.mean), array(before["actor"].encoder.norm0.mean)
        np.testing.assert_allclose(
            statistics[0], 0.99 * statistics[1] + 0.01 * array(data.obs).mean(0), rtol=1e-5
        )
        for slow, old, fast in zip(
            *(m.parameters() for m in (agent.target_critic, before["target_critic"], agent.critic)),
            strict=True,
        ):
            torch.testing.assert_close(slow.data, 0.995 * old.data + 0.005 * fast.data)
        for network in (agent.actor, agent.critic):
            for layer in network.modules():
                if hasattr(layer, "in_features"):
                    torch.testing.assert_close(layer.weight.norm(dim=-1), torch.ones(layer.weight.shape[:-1]))


def test_gradients_are_those_of_finite_differences_in_float64():
    """Through the statistics of the batch, of which next observations are a half."""
    agent, data, noise = make(), batch(), torch.randn(BATCH, ACTION)
    for name in agent.modules:
        getattr(agent, name).double()
    double = Batch(*(tensor.double() for tensor in data))
    loss = agent._critic_loss(double, noise.double())[0]
    for parameter in (agent.critic.encoder.hidden1.weight, agent.critic.encoder.norm1.weight):
        (gradient,) = torch.autograd.grad(loss, [parameter], retain_graph=True)
        direction = gradient / gradient.norm()
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                parameter.add_(sign * 1e-5 * direction)
                ends.append(agent._critic_loss(double, noise.double())[0].item())
                parameter.sub_(sign * 1e-5 * direction)
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(gradient.norm().item(), rel=1e-5)


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_the_projected_target_keeps_its_mass_and_inside_the_range_its_mean(scale):
    g = torch.Generator().manual_seed(0)
    atoms = torch.linspace(-5, 5, 101)
    log_probs = torch.log_softmax(torch.randn(2, 64, 101, generator=g), -1)
    reward, log_prob = scale * torch.randn(2, 64, generator=g)
    discount = torch.full((64,), 0.5)
    alpha = torch.tensor(0.2)
    target = losses.categorical_td_target(atoms, reward, discount, log_probs, log_prob, alpha)
    torch.testing.assert_close(target.sum(1), torch.ones(64))
    next_q = (log_probs.exp() * atoms).sum(-1)
    inside = reward.abs() + 0.1 * log_prob.abs() < 2.5
    expected = losses.sac_td_target(reward, discount, next_q, log_prob, alpha)
    assert inside.sum() > 20
    torch.testing.assert_close((target @ atoms)[inside], expected[inside], rtol=1e-4, atol=1e-5)
    loss = losses.categorical_critic_loss(log_probs, target)
    expected = sum(nn.functional.cross_entropy(each, target) for each in log_probs)
    torch.testing.assert_close(loss, expected)


def test_batch_norm_is_pytorchs():
    """But for the running variance, which PyTorch takes from the unbiased one and Flax from the biased."""
    ours, theirs, x = BatchNorm(6), nn.BatchNorm1d(6, eps=1e-3, momentum=0.01), 3 + 2 * torch.randn(20, 6)
    with torch.no_grad():
        for mine, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
            other.copy_(mine.uniform_(0.5, 2))
    statistics = []
    torch.testing.assert_close(ours(x, statistics), theirs(x))
    assert torch.equal(ours.mean, torch.zeros(6))  # moves by the update's rule only
    torch.testing.assert_close(statistics[0] * 0.01, theirs.running_mean)
    torch.testing.assert_close(0.99 + 0.01 * statistics[1] * 20 / 19, theirs.running_var)
    with torch.no_grad():
        ours.mean.copy_(theirs.running_mean), ours.var.copy_(theirs.running_var)
    torch.testing.assert_close(ours(x), theirs.eval()(x))


def test_rewards_are_scaled_by_the_spread_of_returns():
    """The released code's recursion, in NumPy over the whole history."""
    rng, normalizer = np.random.default_rng(0), RewardNormalizer(3, 0.9)
    running, seen = np.zeros(3), []
    for _ in range(50):
        reward, ended = rng.normal(1, 2, 3).astype(np.float32), rng.random(3) < 0.2
        normalizer.update(torch.from_numpy(np.stack([reward, ended]).astype(np.float32)))
        running = 0.9 * (1 - ended) * running + reward
        seen.append(running)
        assert normalizer.scale.item() == pytest.approx(1 / (np.std(seen) + 1e-8), rel=1e-6)


def test_injected_heads_keep_their_frozen_weights():
    agent = make()
    agent.learn(batch())
    reset_networks(agent.networks(), REGISTRY["plasticity_injection"](), batch(), torch.Generator())
    frozen = [*agent.critic.value.old.parameters(), *agent.critic.value.start.parameters()]
    before = [parameter.clone() for parameter in frozen]
    assert {name for name in unit_weights(agent.critic) if "value" in name} == {"value.new.weight"}
    for number in range(3):
        agent.learn(batch(number))
    assert all(map(torch.equal, before, frozen))


def test_a_restored_agent_goes_on_as_the_original():
    agent, obs = make(), np.ones((3, OBS), np.float32)
    for number in range(3):
        agent.observe_rewards(np.float32([number]), np.array([False]))
        agent.learn(batch(number))
    copied = make(seed=5)
    copied.load_state_dict(copy.deepcopy(agent.state_dict()))
    for number in range(3):
        for each in (agent, copied):
            each.observe_rewards(np.float32([1.0]), np.array([number == 1]))
        assert agent.learn(batch(number)) == copied.learn(batch(number))
        assert np.array_equal(agent.act(obs, 0), copied.act(obs, 0))
