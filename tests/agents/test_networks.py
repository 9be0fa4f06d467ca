"""Networks against plain PyTorch layers, NumPy statistics and the definitions of their initialisers."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agents.networks import (
    EnsembleLayerNorm,
    EnsembleLinear,
    MLPQNetwork,
    NatureQNetwork,
    NipsQNetwork,
    ObservationNormalizer,
    SimbaActor,
    SimbaCritic,
    SimbaEncoder,
    build_seeded,
)


def test_normalizer_statistics_match_numpy_over_all_batches():
    rng = np.random.default_rng(0)
    batches = [rng.normal(5.0, 3.0, size=(size, 4)) for size in (1, 7, 1, 32, 3)]
    normalizer = ObservationNormalizer(4)
    for batch in batches:
        normalizer.update(torch.as_tensor(batch, dtype=torch.float32))
    seen = np.concatenate(batches)
    # The prior of weight 1e-4 (mean 0, variance 1) moves the statistics by a relative 1e-4 / 44.
    np.testing.assert_allclose(normalizer.mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(normalizer.var, seen.var(0), rtol=1e-3)
    obs = torch.as_tensor(batches[3], dtype=torch.float32)
    expected = (obs.double() - normalizer.mean) / torch.sqrt(normalizer.var + 1e-8)
    torch.testing.assert_close(normalizer(obs), expected.float(), rtol=1e-5, atol=1e-5)


def test_normalizer_prior_is_exact_in_the_first_update():
    normalizer = ObservationNormalizer(1)
    normalizer.update(torch.tensor([[2.0]]))
    total = 1e-4 + 1.0
    assert normalizer.count.item() == pytest.approx(total)
    assert normalizer.mean.item() == pytest.approx(2.0 / total)
    assert normalizer.var.item() == pytest.approx((1e-4 * 1.0 + 4.0 * 1e-4 * 1.0 / total) / total)


def test_normalizer_moves_only_in_update():
    normalizer = ObservationNormalizer(3)
    before = {k: v.clone() for k, v in normalizer.state_dict().items()}
    normalizer(torch.randn(8, 3))
    for key, value in normalizer.state_dict().items():
        assert torch.equal(value, before[key])


def test_ensemble_layers_equal_separate_layers():
    linear, norm = EnsembleLinear(3, 5, 4), EnsembleLayerNorm(3, 5, 1e-6)
    for parameter in [*linear.parameters(), *norm.parameters()]:
        nn.init.normal_(parameter)
    x = torch.randn(3, 7, 5)
    for critic_index in range(3):
        expected = F.linear(x[critic_index], linear.weight[critic_index], linear.bias[critic_index])
        torch.testing.assert_close(linear(x)[critic_index], expected)
        expected = F.layer_norm(
            x[critic_index], (5,), norm.weight[critic_index], norm.bias[critic_index], eps=1e-6
        )
        torch.testing.assert_close(norm(x)[critic_index], expected)


def test_ensemble_linear_has_autograds_first_and_second_derivatives():
    layer = EnsembleLinear(2, 3, 4).double()
    nn.init.normal_(layer.weight)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (x, layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(call, inputs) and torch.autograd.gradgradcheck(call, inputs)
    layer(x).sum().backward()
    assert layer.weight.grad.is_contiguous()


def test_simba_critic_equals_the_formula_written_out():
    """Each critic alone: embed, x + W2 relu(W1 norm(x)) twice, norm, head (SimBa, section 4)."""
    torch.manual_seed(0)
    normalizer = ObservationNormalizer(3)
    normalizer.update(torch.randn(100, 3) * 4 + 1)
    critic = SimbaCritic(normalizer, 3, 2, width=8, num_blocks=2, ensemble_size=2)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.5)
    obs, action = torch.randn(6, 3), torch.rand(6, 2)
    state = critic.state_dict()
    for critic_index in range(2):
        w = {name: value[critic_index] for name, value in state.items() if not name.startswith("normalizer")}
        x = torch.cat([((obs - normalizer.mean) / (normalizer.var + 1e-8).sqrt()).float(), action], dim=1)
        x = x @ w["encoder.embed.weight"].T + w["encoder.embed.bias"]
        for block in ("encoder.block1", "encoder.block2"):
            h = F.layer_norm(x, (8,), w[f"{block}.norm.weight"], w[f"{block}.norm.bias"], eps=1e-6)
            h = torch.clamp(h @ w[f"{block}.expand.weight"].T + w[f"{block}.expand.bias"], min=0)
            x = x + h @ w[f"{block}.project.weight"].T + w[f"{block}.project.bias"]
        x = F.layer_norm(x, (8,), w["encoder.norm.weight"], w["encoder.norm.bias"], eps=1e-6)
        expected = (x @ w["value.weight"].T + w["value.bias"]).squeeze(1)
        torch.testing.assert_close(critic(obs, action)[critic_index], expected, rtol=1e-4, atol=1e-4)


def test_initialisation_is_orthogonal_and_he_normal_per_critic():
    torch.manual_seed(0)
    encoder = SimbaEncoder(40, 128, 1, ensemble_size=2)
    for weight in encoder.embed.weight:  # 128 x 40: orthonormal columns
        torch.testing.assert_close(weight.T @ weight, torch.eye(40), rtol=0, atol=1e-5)
    assert not torch.equal(encoder.embed.weight[0], encoder.embed.weight[1])
    for weight, fan_in in ((encoder.block1.expand.weight, 128), (encoder.block1.project.weight, 512)):
        std = math.sqrt(2.0 / fan_in)
        # 131,072 draws: the relative standard error of the standard deviation is about 0.2 %.
        assert weight.std().item() == pytest.approx(std, rel=0.01)
        assert weight.abs().max().item() <= 2 * std / 0.8796256610342398 + 1e-6
        assert weight.abs().max().item() > 2 * std
    assert all(not p.any() for name, p in encoder.named_parameters() if name.endswith("bias"))


def test_log_std_map_is_affine_in_tanh():
    actor = SimbaActor(ObservationNormalizer(2), 2, 3, width=4, num_blocks=1)
    nn.init.zeros_(actor.log_std.weight)
    with torch.no_grad():
        actor.log_std.bias.copy_(torch.tensor([-50.0, 0.0, 50.0]))
    _, log_std = actor(torch.zeros(1, 2))
    torch.testing.assert_close(log_std, torch.tensor([[-10.0, -4.0, 2.0]]))


def test_q_network_uses_xavier_uniform_and_zero_biases():
    torch.manual_seed(0)
    first = MLPQNetwork(300, 4, (200,))[0]
    bound = math.sqrt(6.0 / 500)
    assert first.weight.abs().max().item() <= bound
    assert first.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert not first.bias.any()


def test_build_seeded_draws_from_the_generator_alone():
    def factory():
        return nn.Linear(3, 3)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build_seeded(factory, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same = build_seeded(factory, torch.Generator().manual_seed(5))
    other = build_seeded(factory, torch.Generator().manual_seed(6))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


def normalised(x, gain, shift):
    """Layer norm over all but the batch by its definition, a gain and a shift for each unit or channel."""
    mean, var = x.flatten(1).mean(1), x.flatten(1).var(1, unbiased=False)
    shape = [-1, *[1] * (x.ndim - 1)]
    units = [1, -1, *[1] * (x.ndim - 2)]
    return (x - mean.view(shape)) / (var.view(shape) + 1e-6).sqrt() * gain.view(units) + shift.view(units)


@pytest.mark.parametrize(
    ("build", "strides", "features", "size"),
    [
        (partial(NatureQNetwork, 4, 6), (4, 2, 1), 512, 1_687_206),
        (partial(NipsQNetwork, 4, 6), (4, 2), 256, 677_686),
        (partial(NatureQNetwork, 4, 6, layer_norm=True), (4, 2, 1), 512, 1_687_206 + 2 * 672),
        (partial(NipsQNetwork, 4, 6, layer_norm=True), (4, 2), 256, 677_686 + 2 * 304),
    ],
)
def test_pixel_networks_equal_plain_layers_on_scaled_pixels(build, strides, features, size):
    """Mnih et al. 2015, Methods: 32 8x8 stride 4, 64 4x4 stride 2, 64 3x3, 512 units; Mnih et al. 2013, section 4.1:
    16 8x8 stride 4, 32 4x4 stride 2, 256 units. In the usual memory format."""
    network = build_seeded(build, torch.Generator().manual_seed(0))
    layer_norm = build.keywords.get("layer_norm", False)
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.uniform_(parameter, -0.1, 0.1)
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    w = {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()}
    x = obs.double() / 255
    for number, stride in enumerate(strides, start=1):
        layer = f"encoder.conv{number}"
        x = F.conv2d(x, w[f"{layer}.weight"].double(), w[f"{layer}.bias"].double(), stride=stride)
        norm = f"encoder.norm{number}"
        x = F.relu(
            normalised(x, w[f"{norm}.weight"].double(), w[f"{norm}.bias"].double()) if layer_norm else x
        )
    x = F.linear(x.flatten(1), w["head.fc1.weight"].double(), w["head.fc1.bias"].double())
    norm = f"head.norm{len(strides) + 1}"
    x = F.relu(normalised(x, w[f"{norm}.weight"].double(), w[f"{norm}.bias"].double()) if layer_norm else x)
    expected = F.linear(x, w["head.fc2.weight"].double(), w["head.fc2.bias"].double())
    result = network(obs)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    assert x.shape == (3, features) and sum(p.numel() for p in network.parameters()) == size
    result.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in network.named_parameters():
        scale = w[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, w[name].grad, rtol=1e-3, atol=1e-5 * scale)


def test_layer_norm_of_the_mlp_stands_before_each_hidden_relu():
    network = build_seeded(
        lambda: MLPQNetwork(7, 3, (16, 12), layer_norm=True), torch.Generator().manual_seed(0)
    )
    plain = build_seeded(lambda: MLPQNetwork(7, 3, (16, 12)), torch.Generator().manual_seed(0))
    w = {name: value.detach().double() for name, value in network.named_parameters()}
    assert all(torch.equal(w[name], value.double()) for name, value in plain.named_parameters())
    x = torch.randn(5, 7)
    h = x.double()
    for number in (1, 2):
        h = F.linear(h, w[f"hidden{number}.weight"], w[f"hidden{number}.bias"])
        h = F.relu(normalised(h, w[f"norm{number}.weight"], w[f"norm{number}.bias"]))
    expected = F.linear(h, w["output.weight"], w["output.bias"])
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_nature_network_uses_xavier_uniform_and_zero_biases():
    network = build_seeded(lambda: NatureQNetwork(4, 6), torch.Generator().manual_seed(0))
    fans = {"encoder.conv1": (256, 2048), "encoder.conv3": (576, 576), "head.fc1": (3136, 512)}
    for name, (fan_in, fan_out) in fans.items():
        layer = network.get_submodule(name)
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        assert layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not layer.bias.any()


def test_nature_network_reads_views_of_frames_like_copies():
    """The replay hands out overlapping stacks of one array."""
    network = NatureQNetwork(4, 3)
    five = torch.randint(0, 256, (2, 5, 84, 84), dtype=torch.uint8)
    for stack in (five[:, :-1], five[:, 1:]):
        assert torch.equal(network(stack), network(stack.clone()))
