"""Certify networks that other libraries trained, and attack them.

    pip install -c constraints.txt -e ".[peers]"
    python examples/other_networks.py

A small convolutional network is trained on scikit-learn's digits with each of deel-torchlip and
orthogonium, brought to plain layers, and proven by CertifiedNetwork as it stands: nothing is trained
again, and nothing that the libraries say of their constants is used. DeepFool, DDN and PGD then look
for an image of another class closer than its certified radius. "smallest" is the smallest distance of
an adversarial example divided by the radius of its image: below 1 the proof would be wrong.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sklip import CertifiedNetwork
from sklip.certified import MapBound, exact, register_layer

SHAPE = (1, 8, 8)


def digits() -> tuple[torch.Tensor, ...]:
    """Return images to train on, to test on, and their labels."""
    X, y = load_digits(return_X_y=True)
    images = (X / 16).astype(np.float32).reshape(-1, *SHAPE)
    parts = train_test_split(images, y, random_state=0)
    return tuple(torch.from_numpy(part) for part in parts)


def trained(network: nn.Module, X: torch.Tensor, y: torch.Tensor, epochs: int = 8) -> nn.Module:
    """Train by Adam, as any network, and return it in evaluation mode."""
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(10 * network(X[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval()


def torchlip_network(X: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Return a network of deel-torchlip, exported to plain layers."""
    from deel import torchlip

    @register_layer(torchlip.GroupSort2)
    def _(module: nn.Module, shape: object) -> MapBound:
        # Sorts pairs of neighbouring channels, and multiplies by a coefficient that the export keeps.
        if module._coefficient_lip != 1 or module.group_size != 2:
            raise TypeError("GroupSort2 of deel-torchlip is known with a coefficient of 1 only.")
        return MapBound(1.0, rounding=exact)

    network = torchlip.Sequential(
        torchlip.SpectralConv2d(1, 16, 3, padding=1),
        torchlip.GroupSort2(),
        torchlip.ScaledL2NormPool2d(2),
        torchlip.SpectralConv2d(16, 32, 3, padding=1),
        torchlip.GroupSort2(),
        torchlip.ScaledL2NormPool2d(2),
        nn.Flatten(),
        torchlip.SpectralLinear(128, 64),
        torchlip.GroupSort2(),
        torchlip.SpectralLinear(64, 10),
    )
    return trained(network, X, y).vanilla_export()


def orthogonium_network(X: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Return a network of orthogonium, its parametrizations replaced by the weights that they give."""
    from orthogonium.layers import AdaptiveOrthoConv2d, MaxMin, OrthoLinear

    @register_layer(MaxMin)
    def _(module: nn.Module, shape: object) -> MapBound:
        # The larger and the smaller of channels i and i + C / 2: a permutation of the channels.
        if module.axis != 1:
            raise TypeError(f"MaxMin is known along the channels only, got axis={module.axis}.")
        return MapBound(1.0, rounding=exact)

    network = nn.Sequential(
        AdaptiveOrthoConv2d(1, 16, 3, padding=1, padding_mode="zeros"),
        MaxMin(),
        AdaptiveOrthoConv2d(16, 32, 3, stride=2, padding=1),
        MaxMin(),
        nn.LPPool2d(2, kernel_size=2),
        nn.Flatten(),
        OrthoLinear(128, 64),
        MaxMin(),
        OrthoLinear(64, 10),
    )
    return nn.Sequential(*(plain(layer) for layer in trained(network, X, y)))


def plain(layer: nn.Module) -> nn.Module:
    """Return a plain torch layer with the weights that a parametrized one has now."""
    if isinstance(layer, nn.Linear):
        copy: nn.Module = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    elif isinstance(layer, nn.Conv2d):
        copy = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            tuple(layer.weight.shape[2:]),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
        )
    else:
        return layer
    with torch.no_grad():
        copy.weight.copy_(layer.weight)
        if layer.bias is not None:
            copy.bias.copy_(layer.bias)
    return copy


def attacked(certified: CertifiedNetwork, X: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return distances of adversarial examples, and the radii of the images they come from."""
    import foolbox

    codes, radii = certified.predict_with_radii(X)
    model = foolbox.PyTorchModel(certified.network, bounds=(-10.0, 10.0), device="cpu")
    criterion = foolbox.criteria.Misclassification(torch.from_numpy(codes))
    distances, of_rows = [], []
    for attack, eps in (
        (foolbox.attacks.L2DeepFoolAttack(steps=50), None),
        (foolbox.attacks.DDNAttack(steps=100), None),
        (foolbox.attacks.L2PGD(steps=50), [0.2, 0.5, 1.0, 2.0]),
    ):
        _, found, _ = attack(model, X, criterion, epsilons=eps)
        for examples in found if isinstance(found, list) else [found]:
            # What counts is what the certificate speaks of: the class that is predicted.
            fooled = certified.predict(examples) != codes
            change = (examples - X).double().flatten(1).norm(dim=1).numpy()
            distances.append(change[fooled])
            of_rows.append(radii[fooled])
    return np.concatenate(distances), np.concatenate(of_rows)


def main() -> None:
    """Train, certify, attack, and print a table."""
    torch.manual_seed(0)
    X, X_test, y, y_test = digits()
    print(
        "| library | accuracy | proven bound | median radius | lost to rounding "
        "| examples | violations | smallest |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for name, make in (("deel-torchlip", torchlip_network), ("orthogonium", orthogonium_network)):
        certified = CertifiedNetwork.prove(make(X, y), SHAPE)
        codes, radii = certified.predict_with_radii(X_test)
        distances, of_rows = attacked(certified, X_test)
        ratios = distances / np.maximum(of_rows, 1e-300)
        print(
            f"| {name} | {np.mean(codes == y_test.numpy()):.4f} | {certified.lipschitz_bound:.6f} "
            f"| {np.median(radii):.4f} | {np.median(certified.rounding_loss(X_test)):.2%} "
            f"| {len(distances)} | {np.sum(distances < of_rows)} | {ratios.min():.3f} |"
        )


if __name__ == "__main__":
    main()
