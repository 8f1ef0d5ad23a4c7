"""The course of the rate against torch's own scheduler."""

import pytest
import torch
from torch import nn

from sklip.training.one_cycle import OneCycle


@pytest.mark.parametrize("n_steps", [2, 3, 7, 10, 60, 401])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_rates_are_those_of_torchs_scheduler(kind, n_steps):
    rates = []
    for ours in (True, False):
        layers = nn.Linear(2, 2), nn.Linear(2, 2)
        optimizer = kind([{"params": layer.parameters()} for layer in layers], lr=0.1)
        peaks, seen = [0.3, 0.01], []
        if ours:
            step = OneCycle(optimizer, peaks, n_steps)
        else:
            cycle_momentum = kind is torch.optim.Adam
            step = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, peaks, total_steps=n_steps, cycle_momentum=cycle_momentum
            ).step
        for position in range(n_steps):
            seen += [(group["lr"], group.get("betas")) for group in optimizer.param_groups]
            if position < n_steps - 1:
                optimizer.step()
                step()
        rates.append(seen)
    for (rate, betas), (expected, expected_betas) in zip(*rates, strict=True):
        assert rate == pytest.approx(expected, rel=1e-9, abs=1e-15)
        if betas is not None:
            assert betas == pytest.approx(expected_betas, rel=1e-9)


def test_further_steps_leave_the_rate_and_tensors_are_filled_in_place():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rate = optimizer.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64)
    step = OneCycle(optimizer, [1.0], 3)
    seen = [float(rate)]
    for _ in range(5):
        step()
        seen.append(float(rate))
    assert optimizer.param_groups[0]["lr"] is rate
    assert seen[2:] == [seen[2]] * 4
    assert max(seen) > 0.5 > 0.1 > seen[2]
