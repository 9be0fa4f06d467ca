"""What ``fire_`` and the resets do with networks and surroundings that they did not expect."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fire import fire_, fire_reference, polar_factor, reset_networks
from fire.network.layers import weight_layers
from fire.network.slot import NetworkSlot
from fire.options import FireOptions
from fire.regularizers import parseval
from fire.resets.registry import REGISTRY
from tests.fire.fire_networks import batch_for, make_slot, strategy


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


# ---- computed weights ----


def test_computed_weights_are_all_found() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*(nn.Linear(8, 8) for _ in range(7)))
    computed = copy.deepcopy(plain)
    for layer in computed:
        parametrizations.weight_norm(layer)
    expected = parseval(plain, 1.0).item()
    for _ in range(5):
        assert parseval(computed, 1.0).item() == pytest.approx(expected, rel=1e-5)
        assert [layer.name for layer in weight_layers(computed, writable=False)] == list("0123456")
    with pytest.raises(
        ValueError, match=r"there is no weight layer to change in Sequential: 0: left out by exclude"
    ):
        fire_(computed, exclude=list("0123456"))
    report = fire_(nn.Sequential(computed, nn.Linear(8, 8)), exclude="0.*")
    assert [layer.layer for layer in report.layers] == ["1"]
    assert ("0.3", "left out by exclude") in report.left_alone


def test_weights_computed_by_a_property_are_all_found() -> None:
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features = self.out_features = 8
            self.a, self.b = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 8))

        @property
        def weight(self) -> Tensor:
            return self.a @ self.b

    module = nn.Sequential(*(LowRank() for _ in range(7)))
    assert len(weight_layers(module, writable=False)) == 7
    with pytest.raises(TypeError, match="the weight of 0 is computed"):
        fire_(module)


def test_a_computed_bias_is_refused_before_anything_changes() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    torch.nn.utils.parametrize.register_parametrization(module[1], "bias", nn.Tanh())
    before = state(module)
    with pytest.raises(TypeError, match="the bias of 1 is computed"):
        fire_(module, biases="zero")
    assert unchanged(module, before)


# ---- ties ----


def transposed_parameter(a: nn.Linear, b: nn.Linear) -> None:
    b.weight = nn.Parameter(a.weight.T)


def transposed_tensor(a: nn.Linear, b: nn.Linear) -> None:
    del b.weight
    b.weight = a.weight.T


def transposed_data(a: nn.Linear, b: nn.Linear) -> None:
    b.weight.data = a.weight.data.T


@pytest.mark.parametrize("tie", [transposed_parameter, transposed_tensor, transposed_data])
def test_transposed_ties_are_changed_once(tie: Callable[[nn.Linear, nn.Linear], None]) -> None:
    module = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 6))
    tie(module[0], module[1])
    expected = fire_reference(module[0].weight)
    report = fire_(module)
    torch.testing.assert_close(module[0].weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(module[1].weight, module[0].weight.T)
    (layer,) = report.layers
    assert layer.layer == "0" and layer.scale == pytest.approx((3 / 6) ** 0.5) and not report.left_alone
    values = torch.linalg.svdvals(module[0].weight.detach().double()) / layer.scale
    assert float((values.square() - 1).square().mean().sqrt()) <= layer.residual < 1e-5


def test_a_tie_is_changed_once_by_every_reset() -> None:
    for name in ("fire", "full", "shrink_perturb", "random_orthogonal"):

        def build(generator: torch.Generator | None = None) -> nn.Module:
            module = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 6))
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.normal_(generator=generator)
            transposed_parameter(module[0], module[1])
            return module

        module = build(torch.Generator().manual_seed(1))
        slot = NetworkSlot(
            module=module,
            optimizer=torch.optim.Adam(module.parameters()),
            build=build,
            initial=lambda module=module: copy.deepcopy(module),
            forward=module,
            loss=lambda batch, module=module: module(batch).mean(),
        )
        before = module[0].weight.clone()
        reset_networks({"net": slot}, strategy(name), torch.randn(4, 6), torch.Generator().manual_seed(2))
        assert torch.equal(module[1].weight, module[0].weight.T) and not torch.equal(module[0].weight, before)


def test_embeddings_keep_protects_what_shares_their_memory() -> None:
    for transpose in (False, True):
        module = nn.ModuleDict(
            {"wte": nn.Embedding(10, 4), "body": nn.Linear(4, 4), "head": nn.Linear(10, 4)}
        )
        if transpose:
            module["head"].weight = nn.Parameter(module["wte"].weight.T)
        else:
            module["head"] = nn.Linear(4, 10)
            module["head"].weight = module["wte"].weight
        before = module["wte"].weight.clone()
        report = fire_(module)
        assert torch.equal(module["wte"].weight, before)
        assert [layer.layer for layer in report.layers] == ["body"]
        assert report.left_alone == (("head", "is the embedding wte.weight too"),)
        slot = make_slot("mlp")
        slot.module = module
        slot.optimizer = torch.optim.Adam(module.parameters())
        slot.target = None
        for name in ("fire", "random_orthogonal"):
            report = reset_networks({"net": slot}, strategy(name), None, torch.Generator())
            assert torch.equal(module["wte"].weight, before)
            assert ("net/head", "is the embedding wte.weight too") in report.left_alone


def test_weights_that_share_a_part_of_their_memory_are_refused() -> None:
    memory = torch.randn(10, 4)
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False))
    module[0].weight, module[1].weight = nn.Parameter(memory[:6]), nn.Parameter(memory[4:])
    with pytest.raises(ValueError, match=r"0 and 1 share a part of their memory"):
        fire_(module)
    with pytest.raises(ValueError, match=r"0 and 1\.weight share a part of their memory"):
        fire_(module, exclude="1")
    # Columns of one matrix lie between each other and still share nothing.
    module[0].weight, module[1].weight = nn.Parameter(memory[:, :2]), nn.Parameter(memory[:, 2:])
    expected = [fire_reference(layer.weight) for layer in module]
    fire_(module, conv_form="flatten")
    for layer, weight in zip(module, expected, strict=True):
        torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


# ---- writability ----


def inference_made(layer: nn.Linear) -> None:
    with torch.inference_mode():
        layer.weight = nn.Parameter(torch.randn(layer.weight.shape))


def expanded(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.randn(1, layer.in_features).expand(layer.weight.shape))


def overlapping(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.randn(40).as_strided(layer.weight.shape, (1, 1)))


def freed(layer: nn.Linear) -> None:
    layer.weight.untyped_storage().resize_(0)


def on_meta(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.to("meta"))


def sparse(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())


UNWRITABLE = {
    inference_made: "was made under inference_mode",
    expanded: "is expanded or overlaps itself in memory",
    overlapping: "is expanded or overlaps itself in memory",
    freed: "has no memory behind it",
    on_meta: "is on the meta device",
    sparse: r"has the layout torch.sparse_coo",
}


@pytest.mark.parametrize("damage", list(UNWRITABLE))
def test_weights_that_cannot_be_written_to_stop_fire_before_the_first_write(damage) -> None:
    module = network()
    before = state(module[0])
    damage(module[4])
    with pytest.raises(TypeError, match=f"^4 {UNWRITABLE[damage]}"):
        fire_(module)
    assert unchanged(module[0], before)
    assert len(fire_(module, exclude="4").layers) == 2


@pytest.mark.parametrize(
    "name", [n for n, r in REGISTRY.items() if n not in ("none", "optimizer_only") and r().tracker() is None]
)
@pytest.mark.parametrize("where", ["weight", "bias", "target"])
def test_weights_that_cannot_be_written_to_stop_every_reset_before_the_first_write(
    name: str, where: str
) -> None:
    options = {"dormancy_threshold": 0.9} if name == "redo" else {}
    slot = make_slot("mlp")
    sick = slot.target if where == "target" else slot.module
    attribute = "bias" if where == "bias" else "weight"
    with torch.inference_mode():
        setattr(sick[5], attribute, nn.Parameter(torch.randn(getattr(sick[5], attribute).shape)))
    before = state(slot.module), state(slot.target)
    moments = copy.deepcopy(slot.optimizer.state_dict()["state"])
    try:
        reset_networks(
            {"net": slot}, strategy(name, **options), batch_for("mlp"), torch.Generator().manual_seed(1)
        )
    except TypeError as error:
        assert "inference_mode" in str(error)
        assert unchanged(slot.module, before[0]) and unchanged(slot.target, before[1])
        after = slot.optimizer.state_dict()["state"]
        assert all(torch.equal(moments[i][k], after[i][k]) for i in moments for k in moments[i])
    else:  # nothing had to be written there, or a head was wrapped
        assert where == "bias" or name in ("redo", "plasticity_injection")
        head = sick[5].old if name == "plasticity_injection" else sick[5]
        assert torch.equal(getattr(head, attribute), before[where == "target"][f"5.{attribute}"])


def test_a_target_of_another_structure_stops_a_reset_before_the_first_write() -> None:
    slot = make_slot("mlp")
    slot.target = nn.Sequential(*list(slot.target)[:-1])
    before = state(slot.module)
    with pytest.raises(ValueError, match="the target network has another structure"):
        reset_networks({"net": slot}, strategy("fire"), batch_for("mlp"), torch.Generator())
    assert unchanged(slot.module, before)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_dtypes_that_cannot_be_solved_are_one_line(dtype: torch.dtype) -> None:
    module = network()
    before = state(module)
    module[2].weight = nn.Parameter(module[2].weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(TypeError, match=r"^parameter 2 must be floating point \(.*\), got torch\.\w+$"):
        fire_(module)
    assert torch.equal(module[0].weight, before["0.weight"])


# ---- nothing to do, and what is not there ----


def test_layers_without_elements_are_nothing_to_do() -> None:
    for module in (nn.Linear(0, 4), nn.Linear(4, 0)):
        report = fire_(module, biases="zero")
        assert not report.layers and report.left_alone == (("weight", "has no elements"),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 0), nn.Linear(0, 2))
    assert [layer.layer for layer in fire_(module).layers] == ["0"]


def test_figures_that_do_not_exist_are_no_numbers() -> None:
    slot = make_slot("mlp")
    with torch.no_grad():
        slot.module[3].weight.zero_()
    report = reset_networks({"net": slot}, strategy("fire"), batch_for("mlp"), torch.Generator())
    assert report.layers[1].condition_number == math.inf == report.layers[1].relative_sfe
    scalars = report.scalars()
    assert all(math.isfinite(value) for value in scalars.values())
    missing = {
        "reset/net/condition_number",
        "reset_layers/net/condition_number/3",
        "reset_layers/net/relative_sfe/3",
    }
    assert not missing & set(scalars) and {
        "reset/net/relative_sfe",
        "reset_layers/net/condition_number/5",
    } <= set(scalars)
    for scale in ("preserve_norm", "mean_singular_value"):
        linear = nn.Linear(3, 3)
        nn.init.zeros_(linear.weight)
        assert all(math.isfinite(value) for value in fire_(linear, scale=scale).scalars().values())


def test_selections_of_nothing_are_errors() -> None:
    module = network()
    with pytest.raises(ValueError, match=r"fused '\*\.qvk' matches no weight layer; there are 0, 2, 4"):
        fire_(module, fused={"*.qvk": 3})
    with pytest.raises(ValueError, match="layouts 'x' matches no parameter"):
        fire_(module, layouts={"x": "in_out"})
    with pytest.raises(ValueError, match="layout 'io' is not one of out_in, in_out"):
        fire_(module, layouts={"x": "io"})
    with pytest.raises(ValueError, match="roles is empty"):
        fire_(module, roles=())
    with pytest.raises(ValueError, match="roles is empty"):
        FireOptions(roles=())
    with pytest.raises(ValueError, match="there is no weight layer to change in LayerNorm"):
        fire_(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="0: left out by roles: input"):
        fire_(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), roles=("hidden",))
    slot = make_slot("mlp")
    slot.preserve = ("0", "3", "5")
    with pytest.raises(ValueError, match="reset fire finds no weight layer to change in net"):
        reset_networks({"net": slot}, strategy("fire"), batch_for("mlp"), torch.Generator())


# ---- kinds of layers ----


class Conv1D(nn.Module):
    """The linear layer of GPT-2 as ``transformers`` lays it out."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.02), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(3 * width, width), "c_proj": Conv1D(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(4 * width, width), "c_proj": Conv1D(width, 4 * width)})


def gpt2(width: int = 8) -> nn.Module:
    """GPT-2's parameters under their names: packed QKV, (in, out) weights, head tied to the embedding."""
    parts = {"wte": nn.Embedding(20, width), "wpe": nn.Embedding(6, width), "ln_f": nn.LayerNorm(width)}
    model = nn.ModuleDict(
        {
            "transformer": nn.ModuleDict(parts | {"h": nn.ModuleList([Block(width), Block(width)])}),
            "lm_head": nn.Linear(width, 20, bias=False),
        }
    )
    model["lm_head"].weight = model["transformer"]["wte"].weight
    return model


def test_gpt2() -> None:
    torch.manual_seed(0)
    model = gpt2()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    report = fire_(model, fused={"*.c_attn": 3})
    assert len(report.layers) == 8
    assert dict(report.left_alone) == {
        "lm_head": "is the embedding transformer.wte.weight too",
        "transformer.wpe.weight": "an embedding",
    }
    for name, parameter in model.named_parameters():
        old = before[name]
        if parameter.ndim < 2 or "wte" in name or "wpe" in name:
            assert torch.equal(parameter, old), name
        elif "c_attn" in name:
            parts = [fire_reference(part.T).T for part in old.chunk(3, dim=1)]
            torch.testing.assert_close(parameter.detach().double(), torch.cat(parts, 1), rtol=1e-5, atol=1e-6)
        else:
            torch.testing.assert_close(
                parameter.detach().double(), fire_reference(old.T).T, rtol=1e-5, atol=1e-6
            )
    for name, reason in report.left_alone:
        assert f"left alone: {name}: {reason}" in str(report)


@pytest.mark.parametrize("kind, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_matrices_gate_by_gate(kind: str, gates: int) -> None:
    torch.manual_seed(0)
    cells = [getattr(nn, kind)(5, 4, num_layers=2, bidirectional=True), getattr(nn, f"{kind}Cell")(5, 4)]
    if kind == "LSTM":
        cells.append(nn.LSTM(5, 4, proj_size=3))
    for module in cells:
        before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        report = fire_(module)
        weights = [name for name in before if name.startswith("weight")]
        assert [layer.layer for layer in report.layers] == weights and not report.left_alone
        for name, parameter in module.named_parameters():
            if name in weights:
                parts = before[name].chunk(1 if "weight_hr" in name else gates)
                expected = torch.cat([fire_reference(part) for part in parts])
                torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(parameter, before[name])
        fire_(module, biases="zero")
        assert not any(p.any() for n, p in module.named_parameters() if n.startswith("bias"))


def test_bilinear_is_a_linear_map_of_the_outer_product() -> None:
    module = nn.Bilinear(3, 4, 5)
    expected = fire_reference(module.weight.detach().flatten(1)).view_as(module.weight)
    fire_(module)
    torch.testing.assert_close(module.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 4, 10))
        self.down_proj = nn.Parameter(torch.randn(3, 5, 4))


class ParallelExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.input_size, self.output_size = 3, 4, 6
        self.weight = nn.Parameter(torch.randn(3, 6, 4))


def test_stacks_of_experts() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"experts": Experts(), "parallel": ParallelExperts()})
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    report = fire_(module)
    assert [layer.layer for layer in report.layers] == ["parallel"]
    assert [name for name, _ in report.left_alone] == ["experts.gate_up_proj", "experts.down_proj"]
    assert all("layouts can declare it" in reason for _, reason in report.left_alone)
    for old, new in zip(before["parallel.weight"], module["parallel"].weight.detach(), strict=True):
        torch.testing.assert_close(new.double(), fire_reference(old), rtol=1e-5, atol=1e-6)
    report = fire_(module, layouts={"*experts.*": "in_out"}, fused={"*.gate_up_proj": 2})
    assert not report.left_alone
    for old, new in zip(before["experts.down_proj"], module["experts"].down_proj.detach(), strict=True):
        torch.testing.assert_close(new.double(), fire_reference(old.T).T, rtol=1e-5, atol=1e-6)
    for old, new in zip(before["experts.gate_up_proj"], module["experts"].gate_up_proj.detach(), strict=True):
        for old_part, new_part in zip(old.chunk(2, 1), new.chunk(2, 1), strict=True):
            torch.testing.assert_close(new_part.double(), fire_reference(old_part.T).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [2, 8])
def test_grouped_convolutions_as_published_and_by_group(groups: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 8, 3, groups=groups)
    weight = convolution.weight.detach().clone()

    def nearest(matrix: Tensor) -> Tensor:
        left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        return (matrix.shape[0] / matrix.shape[1]) ** 0.5 / 9 * left @ right

    expected = torch.empty_like(weight, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            expected[:, :, i, j] = nearest(weight[:, :, i, j])
    fire_(convolution)
    torch.testing.assert_close(convolution.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    by_group = nn.Conv2d(8, 8, 3, groups=groups)
    by_group.weight = nn.Parameter(weight.clone())
    for part in (expected.chunk(groups),):
        for rows, old in zip(part, weight.chunk(groups), strict=True):
            for i in range(3):
                for j in range(3):
                    rows[:, :, i, j] = nearest(old[:, :, i, j])
    fire_(by_group, conv_form="group_slices")
    torch.testing.assert_close(by_group.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert (groups == 8) == bool((by_group.weight.abs() - 1 / 9).abs().max() < 1e-6)


@pytest.mark.filterwarnings("ignore")
def test_scripted_traced_and_quantised_modules_are_refused_and_can_be_left_out() -> None:
    def body() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3))

    sick = {
        "scripted": torch.jit.script(body()),
        "traced": torch.jit.trace(body(), torch.zeros(1, 1, 3, 3)),
        "quantised": torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(3, 4), nn.LSTM(3, 4)), {nn.Linear, nn.LSTM}
        ),
    }
    for kind, module in sick.items():
        both = nn.ModuleDict({"healthy": nn.Linear(3, 3), "sick": module})
        before = both["healthy"].weight.clone()
        with pytest.raises(TypeError, match=rf"sick\.0 is .*{kind}"):
            fire_(both)
        assert torch.equal(both["healthy"].weight, before)
        report = fire_(both, exclude="sick*")
        assert [layer.layer for layer in report.layers] == ["healthy"]
        names = {name for name, _ in report.left_alone}
        assert names == ({"sick.0", "sick.1"} if kind == "quantised" else {"sick.0", "sick.2"})
    with pytest.raises(ValueError, match="no weight layer"):
        fire_(torch.jit.freeze(torch.jit.script(body().eval())))


def test_every_matrix_is_in_the_report() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))
            self.norm = nn.LayerNorm((2, 3))
            self.layer, self.word = nn.Linear(3, 3), nn.Embedding(5, 3)

    module = nn.ModuleDict({"odd": Odd(), "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True)})
    report = fire_(module, exclude="odd.layer")
    changed = {layer.layer for layer in report.layers} | {"attention.out_proj.weight"}
    left = {name for name, _ in report.left_alone}
    everything = {name for name, parameter in module.named_parameters() if parameter.ndim >= 2}
    assert everything == (changed - {"attention.out_proj"}) | (left - {"odd.layer"}) | {"odd.layer.weight"}
    slot = make_slot("mlp")
    slot.preserve = ("0",)
    reset = reset_networks({"net": slot}, strategy("fire", roles=("head",)), None, torch.Generator())
    assert set(reset.left_alone) == {("net/0.weight", "preserved"), ("net/3", "kept by fire")}


# ---- ambient modes ----


class Doubling(TorchFunctionMode):
    """Makes every matrix product wrong."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return (
            2 * result if function in (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul) else result
        )


class DefaultDtype:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *exception: object) -> None:
        torch.set_default_dtype(torch.float32)


class Deterministic:
    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *exception: object) -> None:
        torch.use_deterministic_algorithms(False)


class LowPrecision:
    def __enter__(self) -> None:
        torch.set_float32_matmul_precision("medium")

    def __exit__(self, *exception: object) -> None:
        assert torch.get_float32_matmul_precision() == "medium"
        torch.set_float32_matmul_precision("highest")


AMBIENT = {
    "default device": lambda: torch.device("meta"),
    "default dtype 64": lambda: DefaultDtype(torch.float64),
    "default dtype 16": lambda: DefaultDtype(torch.float16),
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": Deterministic,
    "function mode": Doubling,
    "precision": LowPrecision,
    "anomaly": torch.autograd.detect_anomaly,
}


def sick_network() -> nn.Sequential:
    """A network whose layers take every route: well and badly conditioned, without some directions, large."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Linear(30, 20), nn.Linear(20, 20), nn.Linear(400, 400), nn.Linear(5, 3)
    )
    with torch.no_grad():
        module[1].weight.mul_(torch.logspace(0, -5, 30))
        module[2].weight[:5] = 0
    return module


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", list(AMBIENT))
def test_fire_gives_the_same_weights_inside_every_mode(mode: str) -> None:
    expected, module = sick_network(), sick_network()
    outside = fire_(expected, biases="zero", scale="preserve_norm", strength=0.7)
    with AMBIENT[mode]():
        inside = fire_(module, biases="zero", scale="preserve_norm", strength=0.7)
    assert unchanged(module, state(expected)) and inside.layers == outside.layers
    assert not any(parameter.is_inference() for parameter in module.parameters())
    matrix = sick_network()[1].weight.detach()
    with AMBIENT[mode]():
        factor = polar_factor(matrix)
    assert torch.equal(factor, polar_factor(matrix))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", list(AMBIENT))
@pytest.mark.parametrize("name", list(REGISTRY))
def test_resets_give_the_same_weights_inside_every_mode(mode: str, name: str) -> None:
    options = {"dormancy_threshold": 0.9} if name == "redo" else {}

    def run(slot: NetworkSlot) -> None:
        reset_networks({"net": slot}, strategy(name, **options), batch, torch.Generator().manual_seed(1))

    batch = batch_for("mlp")
    expected, slot = make_slot("mlp"), make_slot("mlp")
    fresh = make_slot(
        "mlp", seed=9
    ).module  # made outside: in which mode a builder builds is its own business
    slot.build = expected.build = lambda generator: copy.deepcopy(fresh)
    run(expected)
    with AMBIENT[mode]():
        run(slot)
    assert unchanged(slot.module, state(expected.module)) and unchanged(slot.target, state(expected.target))
    assert not any(parameter.is_inference() for parameter in slot.module.parameters())


@pytest.mark.parametrize("name", ["cbp", "snr"])
@pytest.mark.parametrize(
    "mode", ["default dtype 64", "inference", "autocast", "function mode", "default device"]
)
def test_trackers_do_the_same_inside_every_mode(name: str, mode: str) -> None:
    options = {"replacement_rate": 0.2, "maturity": 1} if name == "cbp" else {"max_silence": 2}
    slots = make_slot("mlp"), make_slot("mlp")
    fresh = make_slot("mlp", seed=9).module
    for slot in slots:
        slot.build = lambda generator: copy.deepcopy(fresh)
    trackers = [strategy(name, **options).tracker() for _ in slots]
    for step in range(4):
        batch = batch_for("mlp", step)
        trackers[0].after_update({"net": slots[0]}, batch, torch.Generator().manual_seed(step))
        with AMBIENT[mode]():
            trackers[1].after_update({"net": slots[1]}, batch, torch.Generator().manual_seed(step))
    assert unchanged(slots[0].module, state(slots[1].module))


def test_where_tensors_are_not_the_weights_nothing_is_touched() -> None:
    module = network()
    before = state(module)
    with pytest.raises(
        RuntimeError, match=r"^fire_ changes weights and cannot run inside torch.func transforms"
    ):
        torch.func.vmap(lambda x: (fire_(module), x)[1])(torch.ones(3))
    with pytest.raises(
        RuntimeError, match=r"^fire_ changes weights and cannot run inside torch.func transforms"
    ):
        torch.func.grad(lambda x: (fire_(module), x)[1])(torch.ones(()))
    slot = make_slot("mlp")
    with FlopCounterMode(display=False):
        with pytest.raises(
            RuntimeError, match=r"^fire_ changes weights and cannot run under the dispatch mode \w+$"
        ):
            fire_(module)
        with pytest.raises(RuntimeError, match=r"^reset_networks changes weights and cannot run under"):
            reset_networks({"net": slot}, strategy("fire"), None, torch.Generator())
    assert unchanged(module, before)


def test_a_compiled_caller_gets_the_same_weights() -> None:
    expected, module = sick_network(), sick_network()
    fire_(expected)

    def caller(x: Tensor) -> Tensor:
        x = x + 1
        fire_(module)
        return x * 2

    assert torch.compile(caller, backend="eager")(torch.ones(2)).tolist() == [4, 4]
    assert unchanged(module, state(expected))
    again = sick_network()
    torch.compile(fire_, backend="eager")(again)
    assert unchanged(again, state(expected))
