"""The fused residual block against its layers one by one: values, gradients, second derivatives, vmap, hooks."""

import copy

import pytest
import torch
from torch import nn

from agents import fused
from agents.networks import ResidualBlock

pytestmark = pytest.mark.skipif(fused._linear is None, reason="this PyTorch has no oneDNN")
WIDTH, CRITICS, BATCH = fused.MIN_WIDTH, 2, 24


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = ResidualBlock(WIDTH, CRITICS)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    return block


@pytest.fixture
def x():
    return torch.randn(CRITICS, BATCH, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)


def reference(block: ResidualBlock) -> ResidualBlock:
    """The same weights in float64, which the fused operation does not take."""
    return copy.deepcopy(block).double()


def gradients(block: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    wanted = [x, *(p for p in block.parameters() if p.requires_grad)]
    return list(torch.autograd.grad((block(x) * weights.to(x.dtype)).sum(), wanted))


def close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(
            one.double(), other.double(), rtol=1e-4, atol=1e-4 * other.abs().max().item()
        )


def operations(block: nn.Module, x: torch.Tensor) -> str:
    return type(block(x).grad_fn).__name__


def test_values_and_all_gradients_equal_float64(block, x):
    double = reference(block), x.detach().double().requires_grad_()
    assert operations(block, x) == "_ResidualBlockBackward"
    assert operations(*double) != "_ResidualBlockBackward"
    torch.testing.assert_close(block(x).double(), double[0](double[1]), rtol=1e-4, atol=1e-5)
    weights = torch.randn(CRITICS, BATCH, WIDTH)
    close(gradients(block, x, weights), gradients(*double, weights))


@pytest.mark.parametrize("rows", [(0, BATCH), (7, BATCH - 7), (1, 0), (BATCH, BATCH)])
def test_frozen_gradient_of_some_samples_only(block, x, rows):
    weights = torch.zeros(CRITICS, BATCH, WIDTH)
    for critic, number in enumerate(rows):
        weights[critic, torch.randperm(BATCH)[:number]] = torch.randn(number, WIDTH)
    double = reference(block)
    for frozen in (block, double):
        frozen.requires_grad_(False)
    (actual,) = gradients(block, x, weights)
    close([actual], gradients(double, x.detach().double().requires_grad_(), weights))
    assert not actual[weights == 0].any()


def test_hessian_vector_product_equals_float64(block, x):
    def product(block, x, vector, wanted):
        (gradient,) = torch.autograd.grad(block(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient, wanted, vector.to(x.dtype))

    vector = torch.randn_like(x)
    single, double = (block, x), (reference(block), x.detach().double().requires_grad_())
    close(*(product(b, x, vector, [x, b.expand.weight]) for b, x in (single, double)))
    for frozen in (single[0], double[0]):
        frozen.requires_grad_(False)
    close(*(product(b, x, vector, [x]) for b, x in (single, double)))


def test_vmap_over_agents_equals_one_by_one(block, x):
    blocks = [block, copy.deepcopy(block)]
    with torch.no_grad():
        for parameter in blocks[1].parameters():
            parameter.mul_(-0.5)
    names = [name for name, _ in block.named_parameters()]
    stack = {n: torch.stack([b.get_parameter(n).detach() for b in blocks]).requires_grad_() for n in names}
    inputs = torch.stack([x.detach(), 2 * x.detach()])

    def call(tensors, x):
        return torch.func.functional_call(block, tensors, (x,)).square().sum()

    values = torch.vmap(call)(stack, inputs)
    actual = torch.autograd.grad(values.sum(), list(stack.values()))
    for index, single in enumerate(blocks):
        value = single(inputs[index]).square().sum()
        torch.testing.assert_close(values[index], value)
        close(
            [g[index] for g in actual], torch.autograd.grad(value, [single.get_parameter(n) for n in names])
        )


def test_hooks_see_the_units_as_before(block, x):
    seen = []
    handle = block.activation.register_forward_hook(lambda module, args, output: seen.append(output))
    watched = block(x)
    handle.remove()
    assert seen[0].shape == (CRITICS, BATCH, 4 * WIDTH) and (seen[0] >= 0).all()
    torch.testing.assert_close(watched, block(x), rtol=1e-5, atol=1e-5)


def test_narrow_networks_and_autocast_take_the_layers_one_by_one(x):
    narrow = ResidualBlock(WIDTH // 2, CRITICS)
    assert operations(narrow, x[..., : WIDTH // 2]) != "_ResidualBlockBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert operations(ResidualBlock(WIDTH, CRITICS), x) != "_ResidualBlockBackward"
