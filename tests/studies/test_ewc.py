"""EWC against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from studies.ewc import Anchor, consolidate


def test_the_gradients_of_softmax_regression():
    """By hand: the gradient of -log p(y | x) is (p - e_y) x^T for the weight and p - e_y for the bias."""
    model = nn.Linear(3, 4)
    inputs = torch.randn(60, 3)
    anchor = consolidate(model, inputs, torch.Generator().manual_seed(0))
    again = torch.Generator().manual_seed(0)
    with torch.no_grad():
        shares = model(inputs).softmax(-1)
        labels = torch.cat([torch.multinomial(share.unsqueeze(0), 1, generator=again)[0] for share in shares])
    assert len(labels.unique()) == 4
    error = shares - nn.functional.one_hot(labels, 4)
    weight = (error.unsqueeze(-1) * inputs.unsqueeze(1)).square().mean(0)
    torch.testing.assert_close(anchor.fisher["weight"], weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(anchor.fisher["bias"], error.square().mean(0), rtol=1e-4, atol=1e-6)
    assert torch.equal(anchor.weights["weight"], model.weight)


def test_positions_of_a_sequence_are_added():
    model = nn.Embedding(2, 5)
    with torch.no_grad():
        model.weight.zero_()
    anchor = consolidate(model, torch.zeros(1000, 3, dtype=torch.long), torch.Generator().manual_seed(0))
    # Three independent draws: E (sum of three (1/5 - y))^2 = 3 * 4/25; the second token never occurs.
    torch.testing.assert_close(anchor.fisher["weight"][0].mean(), torch.tensor(12 / 25), rtol=0.05, atol=0)
    assert not anchor.fisher["weight"][1].any()


def test_the_penalty_by_hand_and_what_it_leaves_alone():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    anchor = consolidate(model[:1], torch.ones(2, 1), torch.Generator())
    assert (
        all(torch.equal(value, state[name]) for name, value in model.state_dict().items()) and model.training
    )
    anchor = Anchor({"0.weight": torch.tensor([[1.0]])}, {"0.weight": torch.tensor([[3.0]])})
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    penalty = anchor.penalty(model, 0.5)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.25 * 3 * 4)  # strength / 2 * F * (3 - 1)^2
    assert float(model[0].weight.grad) == pytest.approx(0.5 * 3 * 2)
    assert model[1].weight.grad is None
