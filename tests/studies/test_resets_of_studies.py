"""Every reset on a ResNet, a vision transformer and a GPT; FIRE's options for fused and tied weights."""

from __future__ import annotations

import copy

import pytest
import torch

from fire import fire_, fire_reference
from fire.options import OPTIONS
from fire.resets.registry import REGISTRY, make_reset, reset_networks
from tests.studies.study_networks import MAKERS, batch_of, make_slot, train_step


def reset(slot, kind, name, **options):
    strategy = make_reset(name, OPTIONS[name](**options))
    batch = tuple(torch.cat([t] * strategy.num_minibatches) for t in batch_of(kind))
    return reset_networks({"net": slot}, strategy, batch, torch.Generator().manual_seed(1))


def weights(slot):
    return {name: p.detach().clone() for name, p in slot.module.named_parameters()}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", REGISTRY)
def test_every_reset_works_on_every_network(name, kind):
    slot = make_slot(kind)
    before, pointers = weights(slot), [p.data_ptr() for p in slot.module.parameters()]
    report = reset(slot, kind, name, **({"dormancy_threshold": 0.9} if name == "redo" else {}))
    now = weights(slot)
    assert all(value.isfinite().all() for value in slot.module.state_dict().values())
    assert report.layers and all(torch.tensor(v).isfinite() for v in report.scalars().values())
    changed = {n for n, value in before.items() if n in now and not torch.equal(value, now[n])}
    tracker = make_reset(name, OPTIONS[name]()).tracker()
    if name in ("none", "optimizer_only") or tracker is not None:
        assert not changed
    elif name == "plasticity_injection":
        assert {n for n in now if n.startswith("head.new.")}
    else:
        assert changed
        assert [p.data_ptr() for p in slot.module.parameters()] == pointers
    if tracker is not None:
        tracker.after_update({"net": slot}, batch_of(kind), torch.Generator().manual_seed(1))
        assert all(value.isfinite().all() for value in slot.module.state_dict().values())
    if name in ("cbp", "snr"):
        assert len(tracker.left_alone) < len([m for m in slot.module.modules() if "LU" in type(m).__name__])
    losses = [train_step(slot, kind, 7) for _ in range(3)]
    assert losses[2] < losses[0]


def test_fused_projections_are_three_matrices():
    slot = make_slot("gpt")
    before = weights(slot)
    reset(slot, "gpt", "fire")
    now = weights(slot)
    for name, old in before.items():
        if name.endswith("qkv.weight"):
            expected = torch.cat([fire_reference(part) for part in old.chunk(3)])
            torch.testing.assert_close(now[name].double(), expected, atol=1e-5, rtol=0)
        elif name.endswith(("out.weight", "up.weight", "down.weight")):
            torch.testing.assert_close(now[name].double(), fire_reference(old), atol=1e-5, rtol=0)
        else:
            assert torch.equal(now[name], old), name


def test_only_query_and_key():
    slot = make_slot("gpt")
    before = weights(slot)
    report = reset(slot, "gpt", "fire", include=("*.qkv",), parts=(0, 1))
    for name, now in weights(slot).items():
        old = before[name]
        if name.endswith("qkv.weight"):
            expected = torch.cat([fire_reference(part) for part in old.chunk(3)])
            torch.testing.assert_close(now[:24].double(), expected[:24], atol=1e-5, rtol=0)
            assert torch.equal(now[24:], old[24:])
        else:
            assert torch.equal(now, old), name
    # The report measures what is there: the value matrix keeps its deviation.
    assert all(each.residual > 0.1 for each in report.layers if each.layer.endswith("qkv"))


def test_query_and_key_of_the_vision_transformer():
    slot = make_slot("vit")
    before = weights(slot)
    reset(slot, "vit", "fire", include=("*.to_q", "*.to_k"))
    changed = {name for name, now in weights(slot).items() if not torch.equal(now, before[name])}
    assert changed == {f"blocks.{i}.attention.{part}.weight" for i in range(2) for part in ("to_q", "to_k")}


def test_a_tied_head_is_kept_or_changed_as_a_head():
    slot = make_slot("gpt")
    old = weights(slot)["tokens.weight"]
    reset(slot, "gpt", "fire", tied="change")
    assert slot.module.head.weight is slot.module.tokens.weight
    expected = fire_reference(old)  # (vocabulary, width), scale sqrt(vocabulary / width)
    torch.testing.assert_close(slot.module.tokens.weight.detach().double(), expected, atol=1e-5, rtol=0)
    other, name = make_slot("gpt"), "tokens.weight"
    reset(other, "gpt", "fire")
    assert torch.equal(weights(other)[name], old)


def test_the_one_line_call_does_the_same():
    slot = make_slot("gpt")
    alone = copy.deepcopy(slot.module)
    reset(slot, "gpt", "fire")
    fire_(alone, fused={"*.qkv": 3})
    for (name, ours), other in zip(slot.module.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    "options, message", [({"parts": (3,)}, "holds 3 matrices"), ({"include": ("x",)}, "no weight")]
)
def test_what_is_not_there_is_an_error(options, message):
    slot = make_slot("gpt")
    before = weights(slot)
    with pytest.raises(ValueError, match=message):
        reset(slot, "gpt", "fire", **options)
    assert all(torch.equal(now, before[name]) for name, now in weights(slot).items())


@pytest.mark.parametrize("name", ["fire", "random_orthogonal"])
def test_parts_of_nothing_fused_change_everything(name):
    one, other = make_slot("vit"), make_slot("vit")
    reset(one, "vit", name)
    reset(other, "vit", name, parts=(0,))
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))
