"""A reset on a GPU is planned on trust: one wait where all is well, the same results and errors where it is not."""

import copy

import pytest
import torch
from torch import nn

from fire import fire_
from fire.resets.registry import reset_networks
from tests.fire.fire_networks import batch_for, make_slot, strategy

pytestmark = pytest.mark.gpu


def slot_on(device, change=lambda module: None, kind="mlp"):
    slot = make_slot(kind)
    slot.target = None
    with torch.no_grad():
        change(slot.module)
    slot.module.to(device)
    slot.optimizer = torch.optim.AdamW(slot.module.parameters())
    return slot


def without_rank(module):
    module[0].weight.zero_()
    module[3].weight[2] = module[3].weight[1]


@pytest.mark.parametrize("change", [lambda module: None, without_rank])
@pytest.mark.parametrize(
    "options",
    [{}, {"biases": "rescale", "input_layer": "redraw", "head": "match_outputs", "target": "keep"}],
)
def test_the_result_is_the_cpus_and_so_are_the_draws(change, options, gpu):
    found = []
    for device in ("cpu", "cuda"):
        slot, generator = slot_on(device, change), torch.Generator().manual_seed(3)
        if not options:
            slot.target = copy.deepcopy(slot.module)
        if gpu is not None:
            gpu.forget()
        batch = batch_for("mlp").to(device)
        report = reset_networks(
            {"q": slot}, strategy("fire", **{"target": "same"} | options), batch, generator, batch
        )
        found.append((slot, generator.get_state(), report))
    if gpu is not None and not options and change is not without_rank:
        assert gpu.waits.total() == 2  # all that decides, and what was kept
    (here, draws, report), (there, others, copied) = found
    assert torch.equal(draws, others)
    for one, other in zip(here.module.parameters(), there.module.parameters(), strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=0, atol=1e-5)
    assert 0 < copied.seconds < 60 and copied.left_alone == report.left_alone
    # A missing direction is infinity in one and rounding in the other.
    keys = [{key for key in each.scalars() if "condition" not in key} for each in (report, copied)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("name", "options", "where", "value", "message"),
    [
        ("fire", {}, 3, torch.nan, "parameter q/3.weight holds NaN"),
        ("fire", {"head": "match_outputs"}, 0, torch.inf, "parameter q/0.weight holds NaN"),
        ("shrink_perturb", {}, 3, torch.nan, "new value of q/3.weight holds NaN"),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_is_changed(name, options, where, value, message):
    slot = slot_on("cuda", lambda module: module[where].weight[1, 2].fill_(value))
    before = copy.deepcopy(slot.module.state_dict())
    with pytest.raises(ValueError, match=message):
        reset_networks(
            {"q": slot}, strategy(name, **options), batch_for("mlp").cuda(), torch.Generator().manual_seed(0)
        )
    for key, old in before.items():
        assert torch.equal(slot.module.state_dict()[key].cpu().nan_to_num(9), old.cpu().nan_to_num(9))


def test_a_value_that_overflows_is_refused_after_one_wait(gpu):
    slot = slot_on("cuda", lambda module: module[3].weight.copy_(1e38 * module[3].weight.sign()))
    if gpu is not None:
        gpu.forget()
    with pytest.raises(ValueError, match=r"new value of q/3\.weight holds NaN"):
        reset_networks({"q": slot}, strategy("fire", scale="preserve_norm"), None, torch.Generator())
    assert gpu is None or gpu.waits.total() == 1


@pytest.mark.parametrize("zero", [False, True])
def test_fire_on_any_network_waits_once_unless_a_matrix_is_in_doubt(zero, gpu):
    networks = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    if zero:
        for network in networks:
            nn.init.zeros_(network[0].weight)
    networks[1].cuda()
    if gpu is not None:
        gpu.forget()
    reports = [fire_(network) for network in networks]
    assert gpu is None or zero or gpu.waits.total() == 1
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=0, atol=1e-6)
    assert [layer.layer for layer in reports[0].layers] == [layer.layer for layer in reports[1].layers]
