"""What hidden units feed is proved, or they are left alone and the report says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from agents.networks import MLPQNetwork, NatureQNetwork, ObservationNormalizer, SimbaActor, SimbaCritic
from fire.network.flow import unit_flows
from fire.resets.registry import reset_networks
from fire.resets.units import outgoing_mask, outgoing_sums, unit_groups
from tests.fire.fire_networks import strategy
from tests.fire.test_rivals import generator, parameters, slot_of


class Net(nn.Module):
    """Modules and the function that runs them."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class ConditionedNorm(nn.Module):
    """A norm without parameters of its own whose scale is given to it."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return scale * (x - x.mean(-1, keepdim=True)) / (1e-3 + x.std(-1, keepdim=True))


DRAWS = torch.Generator().manual_seed(0)  # else now and then a unit is dead that should live


def linear(*sizes: int) -> nn.Linear:
    layer = nn.Linear(*sizes)
    nn.init.normal_(layer.weight, generator=DRAWS)
    nn.init.uniform_(layer.bias, 0.1, 0.5, generator=DRAWS)
    return layer


def late_cat(net: Net, x: Tensor) -> Tensor:
    """Both layers run before the first activation, so order tells nothing."""
    a, b = net.a(x), net.b(x)
    return net.head(torch.cat([net.relu(a), net.relu(b)], -1))


def heads(h: Tensor, net: Net) -> Tensor:
    return torch.cat([net.mean(h), net.std(h)], -1)


def shuffled(net: Net, x: Tensor) -> Tensor:
    return net.head(net.relu(net.a(x))[:, [3, 1, 4, 0, 5, 2]])


# Networks whose units can be recycled: function, modules, and which units reach which inputs of which consumer.
PROVED = {
    "cat": (late_cat, {"a": linear(5, 6), "b": linear(5, 4), "relu": nn.ReLU(), "head": linear(10, 2)}),
    "heads": (
        lambda net, x: heads(net.relu(net.a(x)), net),
        {"a": linear(5, 6), "relu": nn.ReLU(), "mean": linear(6, 2), "std": linear(6, 2)},
    ),
    "shuffled": (shuffled, {"a": linear(5, 6), "relu": nn.ReLU(), "head": linear(6, 2)}),
    "twice in one input": (
        lambda net, x: net.head(torch.cat([net.relu(net.a(x))] * 2, -1)),
        {"a": linear(5, 6), "relu": nn.ReLU(), "head": linear(12, 2)},
    ),
    "skip around the layer": (
        lambda net, x: net.head(torch.cat([x, net.relu(net.a(x))], -1)),
        {"a": linear(5, 6), "relu": nn.ReLU(), "head": linear(11, 2)},
    ),
    "two depths": (
        lambda net, x: (lambda h: net.head(torch.cat([h, net.relu2(net.b(h))], -1)))(net.relu(net.a(x))),
        {"a": linear(5, 6), "relu": nn.ReLU(), "b": linear(6, 4), "relu2": nn.ReLU(), "head": linear(10, 2)},
    ),
}
LEFT = {
    "norm between": (
        lambda net, x: heads(net.norm(net.relu(net.a(x))), net),
        {
            "a": linear(5, 6),
            "relu": nn.ReLU(),
            "norm": nn.LayerNorm(6),
            "mean": linear(6, 2),
            "std": linear(6, 2),
        },
        "feeds norm, not only weight layers",
    ),
    "layer used twice": (
        lambda net, x: net.head(net.relu(net.a(net.relu(net.a(x))))),
        {"a": linear(5, 5), "relu": nn.ReLU(), "head": linear(5, 2)},
        "a is used 2 times",
    ),
    "consumer used twice": (
        lambda net, x: net.head(net.relu(net.a(x))) + net.head(x),
        {"a": linear(5, 5), "relu": nn.ReLU(), "head": linear(5, 2)},
        "head is used 2 times",
    ),
    "residual": (
        lambda net, x: net.head(x + net.relu(net.a(x))),
        {"a": linear(5, 5), "relu": nn.ReLU(), "head": linear(5, 2)},
        "shares inputs of head with other units or something else",
    ),
    "sum of streams": (
        lambda net, x: net.head(net.relu(net.a(x)) + net.relu2(net.b(x))),
        {"a": linear(5, 6), "b": linear(5, 6), "relu": nn.ReLU(), "relu2": nn.ReLU(), "head": linear(6, 2)},
        "shares inputs of head with other units or something else",
    ),
    "output": (
        lambda net, x: (lambda h: torch.cat([net.head(h), h], -1))(net.relu(net.a(x))),
        {"a": linear(5, 6), "relu": nn.ReLU(), "head": linear(6, 2)},
        "feeds the output, not only weight layers",
    ),
    "before the activation": (
        lambda net, x: (lambda z: net.head(torch.cat([net.relu(z), z], -1)))(net.a(x)),
        {"a": linear(5, 6), "relu": nn.ReLU(), "head": linear(12, 2)},
        "a also feeds head",
    ),
    "softmax": (
        lambda net, x: net.head(torch.softmax(net.relu(net.a(x)), -1)),
        {"a": linear(5, 6), "relu": nn.ReLU(), "head": linear(6, 2)},
        "shares inputs of head with other units or something else",
    ),
    "two layers": (
        lambda net, x: net.head(net.relu(net.a(x) + net.b(x))),
        {"a": linear(5, 6), "b": linear(5, 6), "relu": nn.ReLU(), "head": linear(6, 2)},
        "is computed from a, b",
    ),
    "values choose the way": (
        lambda net, x: (lambda h: net.head(h) if h[0, 0] < 9 else net.head(net.b(h)))(net.relu(net.a(x))),
        {"a": linear(5, 6), "relu": nn.ReLU(), "b": linear(6, 6), "head": linear(6, 2)},
        "the forward pass takes another way when values change",
    ),
    "a norm that takes a condition": (
        lambda net, x: net.head(net.relu(net.norm(net.a(x), x[:, :1]))),
        {"a": linear(5, 6), "norm": ConditionedNorm(), "relu": nn.ReLU(), "head": linear(6, 2)},
        "norm takes 2 tensors",
    ),
}


@pytest.mark.parametrize("kind", list(PROVED))
def test_recycling_a_dead_unit_leaves_the_output_and_all_other_units_weights(kind: str) -> None:
    function, modules = PROVED[kind]
    module = Net(function, **modules)
    slot, batch = slot_of(module), torch.randn(32, 5, generator=DRAWS)
    flows = unit_flows(slot, batch)
    assert not flows.left_alone and {flow.producer.name for flow in flows.flows} == set(modules) & {"a", "b"}
    with torch.no_grad():
        modules["a"].bias[3] = -1e3
    before, outputs = parameters(module), module(batch)
    report = reset_networks({"q": slot}, strategy("redo", dormancy_threshold=0.0), batch, generator())
    assert not [reason for _, reason in report.left_alone if not reason.startswith("kept by")]
    after = parameters(module)
    # Unit 3 got its fresh weights; what it feeds was found by hand from the gradient of the consumers' outputs.
    assert after["a.weight"][3].eq(5).all() and after["a.bias"][3] == 0
    torch.testing.assert_close(module(batch), outputs)
    with torch.no_grad():
        moved = module(batch)
        modules["a"].weight[3] *= 3
        assert torch.equal(module(batch), moved)  # the recycled unit is active, and nobody listens
    for name, value in after.items():
        if name not in ("a.weight", "a.bias"):
            changed = value != before[name]
            assert value[changed].eq(0).all(), name
    assert after["a.weight"][torch.arange(6) != 3].equal(before["a.weight"][torch.arange(6) != 3])


@pytest.mark.parametrize("kind", list(LEFT))
def test_units_without_a_proof_are_left_alone_and_the_report_says_so(kind: str) -> None:
    function, modules, reason = LEFT[kind]
    module = Net(function, **modules)
    slot, batch = slot_of(module), torch.randn(32, 5, generator=DRAWS)
    with torch.no_grad():
        modules["a"].bias[3] = -1e3
    before = parameters(module)
    report = reset_networks({"q": slot}, strategy("redo", dormancy_threshold=0.0), batch, generator())
    assert ("q/relu", reason) in report.left_alone and f"q/relu: {reason}" in str(report)
    assert all(torch.equal(value, before[name]) for name, value in parameters(module).items())
    for name, options in (("cbp", {"replacement_rate": 1.0, "maturity": 0}), ("snr", {"max_silence": 1})):
        tracker = strategy(name, **options).tracker()
        for _ in range(3):
            assert tracker.after_update({"q": slot}, batch, generator())["q"] == 0
        assert ("q/relu", reason) in tracker.left_alone
    assert all(torch.equal(value, before[name]) for name, value in parameters(module).items())


def test_two_streams_do_not_touch_each_other() -> None:
    a, b, head = linear(5, 6), linear(5, 6), linear(12, 2)
    module = Net(
        lambda net, x: net.head(torch.cat([net.ra(net.a(x)), net.rb(net.b(x))], -1)),
        a=a, b=b, ra=nn.ReLU(), rb=nn.ReLU(), head=head,
    )  # fmt: skip
    with torch.no_grad():
        a.bias[3] = -1e3
    before = parameters(module)
    reset_networks(
        {"q": slot_of(module)}, strategy("redo", dormancy_threshold=0.0), torch.randn(32, 5), generator()
    )
    assert torch.equal(b.weight, before["b.weight"])
    expected = before["head.weight"].clone()
    expected[:, 3] = 0
    assert torch.equal(head.weight, expected)


def test_a_tied_consumer_is_left_alone() -> None:
    module = Net(
        lambda net, x: net.head(net.relu(net.a(x))) + net.other(x),
        a=linear(5, 5), relu=nn.ReLU(), head=linear(5, 2), other=linear(5, 2),
    )  # fmt: skip
    module.other.weight = module.head.weight
    flows = unit_flows(slot_of(module), torch.randn(8, 5))
    assert not flows.flows and flows.left_alone == [("relu", "head shares its weight with other.weight")]


def test_convolutions_norms_pooling_and_flattening() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3),
        nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2),
    )  # fmt: skip
    flows = unit_flows(slot_of(module), torch.randn(4, 1, 10, 10))
    assert not flows.left_alone
    found = [(flow.name, flow.producer.name, flow.consumers[0].name) for flow in flows.flows]
    assert found == [("2", "0", "4"), ("6", "4", "8"), ("10", "8", "11")]
    assert flows.flows[1].inputs[0].tolist() == [[list(range(9 * i, 9 * i + 9)) for i in range(3)]]


def test_the_projects_own_networks() -> None:
    normalizer = ObservationNormalizer(7)
    obs, blocks = torch.randn(9, 7), ["encoder.block1.expand", "encoder.block2.expand"]
    frames = torch.randint(0, 255, (4, 4, 84, 84), dtype=torch.uint8)
    layers = ["encoder.conv1", "encoder.conv2", "encoder.conv3", "head.fc1"]
    critic = {"heads": ("value",), "ensemble_size": 2}
    cases = [
        (NatureQNetwork(4, 6), frames, {}, layers),
        (NatureQNetwork(4, 6, layer_norm=True), frames, {}, layers),
        (MLPQNetwork(7, 3, (16, 12)), obs, {}, ["hidden1", "hidden2"]),
        (MLPQNetwork(7, 3, (16, 12), layer_norm=True), obs, {}, ["hidden1", "hidden2"]),
        (SimbaActor(normalizer, 7, 3, 8, 2), obs, {"heads": ("mean", "log_std")}, blocks),
        (SimbaCritic(normalizer, 7, 3, 8, 2, 2), (obs, torch.randn(9, 3)), critic, blocks),
    ]
    for module, batch, options, producers in cases:
        preserve = ("normalizer",) if hasattr(module, "normalizer") else ()
        slot = slot_of(module, preserve=preserve, **options)
        slot.forward = lambda batch, module=module: (
            module(*batch) if isinstance(batch, tuple) else module(batch)
        )
        flows = unit_flows(slot, batch)
        assert not flows.left_alone and [flow.producer.name for flow in flows.flows] == producers
        names = [layer.name for layer in slot.layers()]
        for flow in flows.flows:
            # A unit's inputs follow each other, and the consumer is the next layer.
            (consumer,), (inputs,) = flow.consumers, flow.inputs
            assert names.index(consumer.name) == names.index(flow.producer.name) + 1
            size = consumer.weight.shape[consumer.in_axis]
            assert torch.equal(inputs.flatten(1), torch.arange(size).expand(len(inputs), size))


def test_probing_leaves_no_trace() -> None:
    module = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(6, 2)
    )
    slot, batch = slot_of(module), torch.randn(8, 5)
    before, random_state = {n: v.clone() for n, v in module.state_dict().items()}, torch.get_rng_state()
    copied = batch.clone()
    assert len(unit_flows(slot, batch).flows) == 1
    assert torch.equal(torch.get_rng_state(), random_state) and torch.equal(batch, copied) and module.training
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_masks_and_sums_of_scattered_inputs() -> None:
    (group,) = unit_groups(
        slot_of(Net(shuffled, a=linear(5, 6), relu=nn.ReLU(), head=linear(6, 2))), torch.randn(8, 5)
    )
    (head,), (inputs,) = group.consumers, group.inputs
    marks = torch.zeros(1, 6, dtype=torch.bool)
    marks[0, 4] = True  # input 2 of the head is unit 4
    assert outgoing_mask(head, inputs, marks).nonzero()[:, 1].tolist() == [2, 2]
    sums = outgoing_sums(head, inputs, head.weight.detach().abs().double())
    expected = head.weight.detach().abs().double().sum(0)
    assert torch.equal(sums[0, torch.tensor([3, 1, 4, 0, 5, 2])], expected)
