"""FIRE that keeps what was learned: the norm of a fresh layer, and biases that follow the weights' change of size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from agents.networks import NipsQNetwork, ObservationNormalizer, SimbaActor, mlp
from fire import fire_, fire_reference, reset_networks
from fire.network.chain import size_chains
from fire.network.layers import weight_layers
from tests.fire.fire_networks import ARCHITECTURES, batch_for, make_slot, strategy

SCALES_OF_THEIR_OWN = ("paper", "unit", "fresh_norm")  # that do not look at the weight


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relu_net(seed: int, norm: bool = False) -> nn.Sequential:
    """Three layers with biases that matter."""
    g = generator(seed)
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 14), nn.LeakyReLU(), nn.Linear(14, 5))
    if norm:
        net.insert(1, nn.LayerNorm(20, eps=0.0))
        net.insert(4, nn.RMSNorm(14, eps=1e-30))
    for p in net.parameters():
        nn.init.normal_(p, std=0.5, generator=g)
    return net


def conv_net(seed: int) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.0), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip
    for p in net.parameters():
        nn.init.normal_(p, std=0.4, generator=generator(seed + p.numel()))
    return net


CASES = {
    "mlp": (relu_net, (40, 6)),
    "norms": (lambda seed: relu_net(seed, norm=True), (40, 6)),
    "conv": (conv_net, (40, 2, 13, 13)),
}


def layers_of(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("name", ["fire", "random_orthogonal"])
def test_fresh_norm_is_the_frobenius_norm_of_a_new_layer(name: str, kind: str) -> None:
    slot = make_slot(kind)
    before = {layer.name: layer.weight.detach().clone() for layer in slot.layers()}
    reset_networks({"net": slot}, strategy(name, scale="fresh_norm"), batch_for(kind), generator(7))
    fresh = slot.build(generator(7))
    for layer in slot.layers():
        drawn = fresh.get_parameter(f"{layer.name}.weight")
        torch.testing.assert_close(layer.weight.norm(), drawn.norm())
        if name == "fire" and layer.weight.ndim != 3:
            expected = fire_reference(before[layer.name], "unit")
            expected = expected / expected.norm() * drawn.double().norm()
            torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_fresh_norm_of_the_first_weights() -> None:
    slot = make_slot("mlp")
    reset_networks({"net": slot}, strategy("fire", scale="fresh_norm", source="rewind"), None, generator(7))
    for layer in slot.layers():
        first = slot.initial().get_parameter(f"{layer.name}.weight")
        torch.testing.assert_close(layer.weight.norm(), first.norm())


def test_fire_in_place_takes_the_norm_of_pytorchs_own_initialisation_or_of_a_given_network() -> None:
    net = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Conv1d(40, 60, 5))
    state = torch.get_rng_state()
    fire_(net, scale="fresh_norm")
    assert torch.equal(state, torch.get_rng_state())
    # Uniform within 1 / sqrt(fan in): entries of variance 1 / (3 fan in).
    assert net[0].weight.norm().item() == pytest.approx((300 / 3) ** 0.5, rel=0.01)
    assert net[2].weight.norm().item() == pytest.approx((60 / 3) ** 0.5, rel=0.02)
    other = copy.deepcopy(net)
    nn.init.constant_(other[0].weight, 0.25)
    fire_(net, scale="fresh_norm", fresh=other)
    assert net[0].weight.norm().item() == pytest.approx(0.25 * (200 * 300) ** 0.5, rel=1e-5)


def test_fresh_norm_refuses_what_cannot_be_drawn() -> None:
    ensemble = mlp([3, 8, 2], ensemble_size=2)
    with pytest.raises(
        ValueError, match="hidden1 cannot be drawn anew: EnsembleLinear has no reset_parameters"
    ):
        fire_(ensemble, scale="fresh_norm")
    with pytest.raises(ValueError, match="fresh has no weight 0"):
        fire_(relu_net(0), scale="fresh_norm", fresh=ensemble)
    with pytest.raises(ValueError, match=r"fresh has 0 of shape \(7, 6\), module \(20, 6\)"):
        fire_(relu_net(0), scale="fresh_norm", fresh=nn.Sequential(nn.Linear(6, 7)))
    fire_(ensemble, scale="fresh_norm", fresh=mlp([3, 8, 2], ensemble_size=2))


@pytest.mark.parametrize("scale", SCALES_OF_THEIR_OWN)
@pytest.mark.parametrize("kind", list(CASES))
@pytest.mark.parametrize("seed", range(3))
def test_rescaled_biases_make_the_reset_blind_to_the_split_of_sizes_between_layers(kind, scale, seed) -> None:
    make, shape = CASES[kind]
    net = make(seed).double()
    moved = copy.deepcopy(net)
    factors = (torch.rand(len(layers_of(net)) - 1, generator=generator(seed)).double() * 4).exp2() / 4
    with torch.no_grad():
        for index, factor in enumerate(factors):
            first, second = layers_of(moved)[index : index + 2]
            first.weight *= factor
            first.bias *= factor
            if kind != "norms":  # behind a norm the factor is gone by itself
                second.weight /= factor
    x = torch.randn(shape, generator=generator(seed)).double()
    torch.testing.assert_close(moved(x), net(x), rtol=1e-9, atol=1e-9)
    for each in (net, moved):
        fire_(each, scale=scale, biases="rescale")
    for ours, theirs in zip(net.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    kept = make(seed).double()
    fire_(kept, scale=scale)
    assert not torch.allclose(kept(x), net(x))


@pytest.mark.parametrize("scale", SCALES_OF_THEIR_OWN)
@pytest.mark.parametrize("kind", list(CASES))
@pytest.mark.parametrize(
    "options", [{}, {"roles": ("input", "hidden")}, {"roles": ("head",)}, {"strength": 0.4}]
)
def test_isometries_keep_the_greedy_policy(kind: str, scale: str, options: dict) -> None:
    make, shape = CASES[kind]
    net = make(3).double()
    fire_(net, scale="unit")
    with torch.no_grad():
        for number, layer in enumerate(layers_of(net), start=1):
            layer.weight *= 0.4 * number
    x = torch.randn(shape, generator=generator(4)).double()
    before, sizes = net(x), [layer.weight.norm() for layer in layers_of(net)]
    kept = copy.deepcopy(net)
    fire_(net, scale=scale, biases="rescale", **options)
    since_norm = layers_of(net)[-1:] if kind == "norms" else layers_of(net)
    ratios = [new.weight.norm() / old for new, old in zip(layers_of(net), sizes, strict=True)]
    product = torch.stack(ratios[-len(since_norm) :]).prod()
    torch.testing.assert_close(net(x), before * product, rtol=1e-9, atol=1e-9)
    assert torch.equal(net(x).argmax(-1), before.argmax(-1))
    if not options:
        fire_(kept, scale=scale)
        assert not torch.allclose(kept(x), before * product, rtol=1e-3)


def test_each_network_of_an_ensemble_has_its_own_product() -> None:
    slot = make_slot("twin")
    before = copy.deepcopy(slot.module)
    with torch.no_grad():
        slot.module.fc1.weight[1] *= 3.0
    reset_networks({"net": slot}, strategy("fire", biases="rescale"), batch_for("twin"), generator(0))
    product = torch.ones(2)
    for name in ("fc1", "fc2", "head"):
        old, new = (each.get_submodule(name) for each in (before, slot.module))
        size = old.weight.flatten(1).norm(dim=1)
        if name == "fc1":
            size = size * torch.tensor([1.0, 3.0])
        product = product * new.weight.flatten(1).norm(dim=1) / size
        torch.testing.assert_close(new.bias.detach(), old.bias.detach() * product[:, None])


def test_products_start_anew_behind_norms_and_whatever_is_not_homogeneous() -> None:
    def chains(module: nn.Module, **options) -> list[list[str]]:
        found = weight_layers(module, **options)
        return [[layer.name for layer in chain] for chain in size_chains(module, found)]

    tanh = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert chains(tanh) == [["0"], ["0", "2"], ["4"]]
    pixels = NipsQNetwork(4, 3, layer_norm=True)
    assert chains(pixels) == [["encoder.conv1"], ["encoder.conv2"], ["head.fc1"], ["head.fc2"]]
    simba = SimbaActor(ObservationNormalizer(5), 5, 2, 8, 2)
    blocks = [f"encoder.block{number}" for number in (1, 2)]
    assert chains(simba, heads=("mean", "log_std")) == [
        ["encoder.embed"],
        *([f"{b}.expand"] for b in blocks[:1]),
        [f"{blocks[0]}.expand", f"{blocks[0]}.project"],
        [f"{blocks[1]}.expand"],
        [f"{blocks[1]}.expand", f"{blocks[1]}.project"],
        ["mean"],
        ["log_std"],
    ]


def test_a_tanh_ends_the_invariance() -> None:
    """The statement's limit is real: behind a tanh the split of sizes matters."""
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    x = torch.randn(40, 6).double()
    fire_(net, scale="unit")
    with torch.no_grad():
        net[0].weight *= 2
    before = net(x)
    fire_(net, scale="unit", biases="rescale")
    assert not torch.allclose(net(x) / before, (net(x) / before)[0, 0], rtol=1e-3)


def test_rescaling_refuses_what_it_cannot_follow() -> None:
    with pytest.raises(
        ValueError, match=r"biases 'rescale' follows linear layers.*weight_ih_l0 is none of them"
    ):
        fire_(nn.LSTM(4, 4), biases="rescale")
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="0 is tied"):
        fire_(tied, biases="rescale")


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_redrawn_biases_are_those_of_a_fresh_network(kind: str) -> None:
    slot = make_slot(kind)
    reset_networks({"net": slot}, strategy("fire", biases="redraw"), batch_for(kind), generator(7))
    fresh = slot.build(generator(7))
    for layer in slot.layers():
        assert torch.equal(layer.bias, fresh.get_parameter(f"{layer.name}.bias"))


def test_zero_weights_count_as_unchanged() -> None:
    net = relu_net(0)
    with torch.no_grad():
        net[0].weight.zero_()
    bias = net[0].bias.detach().clone()
    fire_(net, biases="rescale")
    assert torch.equal(net[0].bias, bias)


def outputs_of(slot, names: list[str], batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What layers hand on, seen by hooks of the test's own; in evaluation mode, as probing is."""
    seen = {}
    handles = [
        slot.module.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.detach().double()})
        )
        for name in names
    ]
    slot.module.eval()(batch)
    slot.module.train()
    for handle in handles:
        handle.remove()
    return seen


def size(values: torch.Tensor, kind: str) -> torch.Tensor:
    return values.square().mean((1, 2) if kind == "twin" else None).sqrt()


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("biases", ["keep", "zero", "rescale"])
@pytest.mark.parametrize("name", ["fire", "random_orthogonal"])
def test_outer_layers_keep_the_size_of_their_outputs_and_are_isometries(kind, biases, name) -> None:
    slot, plain = make_slot(kind), make_slot(kind)
    layers = {layer.role: layer.name for layer in slot.layers()}
    names, batch = [layers["input"], layers["head"]], batch_for(kind)
    before = outputs_of(slot, names, batch)
    options = {"input_layer": "match_outputs", "head": "match_outputs", "biases": biases}
    report = reset_networks({"net": slot}, strategy(name, **options), batch, generator(0))
    after = outputs_of(slot, names, batch)
    for each in names:
        torch.testing.assert_close(size(after[each], kind), size(before[each], kind), rtol=1e-5, atol=0)
    reset_networks({"net": plain}, strategy(name, biases=biases), batch, generator(0))
    for layer, other, reported in zip(slot.layers(), plain.layers(), report.layers, strict=True):
        # The same isometry times another number, one for each network.
        ratio = (layer.weight / other.weight).detach()
        axes = (-2, -1) if kind == "twin" else tuple(range(ratio.ndim))
        torch.testing.assert_close(ratio, ratio.mean(axes, keepdim=True).expand_as(ratio), rtol=1e-4, atol=0)
        assert (abs(ratio.mean() - 1) < 1e-6) == (layer.role == "hidden")
        sfe = (
            (layer.weight - make_slot(kind).module.get_parameter(f"{layer.name}.weight"))
            .double()
            .square()
            .sum()
        )
        assert reported.sfe == pytest.approx(sfe.item(), rel=1e-4)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_outer_layers_are_redrawn_or_kept(kind: str) -> None:
    slot, old = make_slot(kind), make_slot(kind).module
    reset_networks(
        {"net": slot},
        strategy("fire", input_layer="keep", head="redraw", biases="rescale"),
        None,
        generator(7),
    )
    fresh = slot.build(generator(7))
    first, *_, last = slot.layers()
    for parameter in ("weight", "bias"):
        name = f"{first.name}.{parameter}"
        assert torch.equal(slot.module.get_parameter(name), old.get_parameter(name))
        name = f"{last.name}.{parameter}"
        assert torch.equal(slot.module.get_parameter(name), fresh.get_parameter(name))


def test_a_failing_look_at_the_new_network_changes_nothing() -> None:
    slot = make_slot("mlp")
    before, calls = copy.deepcopy(slot.module.state_dict()), []
    forward = slot.forward

    def fail_the_second_time(batch: torch.Tensor) -> torch.Tensor:
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("no more")
        return forward(batch)

    slot.forward = fail_the_second_time
    with pytest.raises(RuntimeError, match="no more"):
        reset_networks({"net": slot}, strategy("fire", head="match_outputs"), batch_for("mlp"), generator(0))
    assert all(torch.equal(value, before[name]) for name, value in slot.module.state_dict().items())


def test_choices_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="head 'redraw' changes a layer that roles hidden leave out"):
        strategy("fire", head="redraw", roles=("hidden",))
    with pytest.raises(ValueError, match="input_layer 'match_outputs' looks at the network's outputs"):
        strategy("fire", input_layer="match_outputs", target="same")
    with pytest.raises(ValueError, match="head 'drop' is not one of project, match_outputs, redraw, keep"):
        strategy("fire", head="drop")
