r"""How much larger radii could be by a sharper constant: the default network on MNIST.

    python benchmarks/sharper.py [--images 20000] [--rank 16] [--sweeps 300]

The proven constant is the product of the layers' norms. GroupSort2 keeps the sum of a pair and takes
the absolute value of its difference, so a change of its input passes with each difference d times a
number between -1 and 1. Looked for is the largest gain over all such numbers, by steps of each layer's
in turn from a random start: no constant that is right for all of them is below what is found.

LipSDP (Pauli et al. 2024) proves a constant by quadratic forms that are diagonal on the differences.
The sum of such a form over several changes at once holds as well, so it can't tell a number times d
from any vector of changes whose length is at most that of the vector d. So the largest gain over all
vectors, found in the same way, is a lower bound on every constant that LipSDP proves.

Printed are both gains over the proven constant, for all logits and for differences of two.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
from sklearn.datasets import fetch_openml
from torch import Tensor, nn

from sklip import LipschitzClassifier
from sklip.layers import GroupSort2

# Of x, where a step of the whole gradient swings to and fro.
STEP = 0.3


def without_biases(network: nn.Module) -> nn.Module:
    """Return a copy whose layers, but for the activations, are linear."""
    linear = copy.deepcopy(network).double()
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return linear.requires_grad_(False)


def passed(changes: Tensor, directions: Tensor) -> Tensor:
    """Pass changes, shape (rank, channels, ...): sums are kept, differences have other directions."""
    first, second = changes.unflatten(1, (-1, 2)).unbind(2)
    total, difference = first + second, torch.linalg.vector_norm(first - second, dim=0) * directions
    return torch.stack(((total + difference) / 2, (total - difference) / 2), 2).flatten(1, 2)


def unit(x: Tensor) -> Tensor:
    """Scale vectors along the first axis to length 1."""
    return x / torch.linalg.vector_norm(x, dim=0, keepdim=True).clamp(min=1e-300)


def largest_gain(network: nn.Module, head: Tensor, rank: int, n_sweeps: int) -> float:
    """Return the largest gain that is found: with real numbers where rank is 1."""
    x = torch.randn(rank, 1, 28, 28, dtype=torch.float64)
    directions: list[Tensor] = []

    def gain() -> Tensor:
        values, place = x, 0
        for layer in network:
            if isinstance(layer, GroupSort2):
                if place == len(directions):
                    directions.append(unit(torch.randn_like(values[:, ::2])))
                values, place = passed(values, directions[place]), place + 1
            else:
                values = layer(values)
        return (values @ head.T).square().sum() / x.square().sum()

    best = float(gain())  # which draws the directions
    for _ in range(n_sweeps):
        for variable in (x, *directions):
            variable.requires_grad_()
            value = gain()
            (gradient,) = torch.autograd.grad(value, variable)
            best = max(best, float(value.detach()))
            variable.requires_grad_(False)
            if variable is x:
                x += STEP * x.norm() * gradient / gradient.norm()
            else:
                # The gain is convex in them, so it grows by this step.
                moves = torch.linalg.vector_norm(gradient, dim=0, keepdim=True) > 0
                variable.copy_(torch.where(moves, unit(gradient), variable))
    return best**0.5


def main(n_images: int, rank: int, n_sweeps: int) -> None:
    """Train, search and print."""
    X, y = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False)
    X = (X[:n_images] / 255).astype(np.float32).reshape(-1, 1, 28, 28)
    clf = LipschitzClassifier(random_state=0).fit(X, y[:n_images])
    *layers, last = without_biases(clf.net_.module_)
    body = nn.Sequential(*layers)
    constant = clf.lipschitz_bound_
    print("| output | found, of the proven constant | at least, of any that LipSDP proves |")
    print("| --- | --- | --- |")
    heads = {"all logits": last.weight}
    for one, other in ((0, 1), (3, 5), (4, 9), (7, 2)):
        heads[f"{one} - {other}"] = (last.weight[one] - last.weight[other])[None] / 2**0.5
    for name, head in heads.items():
        torch.manual_seed(0)
        found = [largest_gain(body, head, each, n_sweeps) / constant for each in (1, rank)]
        print(f"| {name} | {found[0]:.4f} | {found[1]:.4f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rank", type=int, default=16, help="changes at once")
    parser.add_argument("--sweeps", type=int, default=300, help="steps of each layer")
    arguments = parser.parse_args()
    main(arguments.images, arguments.rank, arguments.sweeps)
