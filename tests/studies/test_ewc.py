"""EWC against the closed form of softmax regression."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from studies.ewc import Anchor, consolidate


def test_the_fisher_information_of_softmax_regression():
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 4)
    inputs = torch.randn(1000, 3, generator=generator)
    anchor = consolidate(model, inputs, generator)
    with torch.no_grad():
        shares = model(inputs).softmax(-1)
        # E over labels of (p_k - y_k)^2 x_j^2 is p_k (1 - p_k) x_j^2.
        variance = shares * (1 - shares)
        weight = (variance.unsqueeze(-1) * inputs.square().unsqueeze(1)).mean(0)
    torch.testing.assert_close(anchor.fisher["weight"], weight, rtol=0.2, atol=0)
    torch.testing.assert_close(anchor.fisher["bias"], variance.mean(0), rtol=0.2, atol=0)


def test_positions_of_a_sequence_are_added():
    model = nn.Embedding(2, 5)
    with torch.no_grad():
        model.weight.zero_()
    anchor = consolidate(model, torch.zeros(400, 3, dtype=torch.long), torch.Generator().manual_seed(0))
    # Three independent draws: E (sum of three (1/5 - y))^2 = 3 * 4/25; the second token never occurs.
    torch.testing.assert_close(anchor.fisher["weight"][0].mean(), torch.tensor(12 / 25), rtol=0.1, atol=0)
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
