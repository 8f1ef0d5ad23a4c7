"""Networks that sort by ReLU are the same functions, of operators that other verifiers read."""

import numpy as np
import onnx
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklip import CertifiedNetwork, LipschitzClassifier, layers, to_verifier_onnx
from sklip.export import relu_form

# What auto_LiRPA, Marabou and nnenum know, among others.
KNOWN = {"Add", "Concat", "Div", "Gather", "Gemm", "Identity", "MatMul", "Mul", "Relu", "Sub"}


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (16, 8), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("seeded_torch")
def test_a_network_without_sorting_is_equal_up_to_rounding(dtype):
    network = nn.Sequential(
        nn.Flatten(),
        layers.GroupSort2(),
        nn.Sequential(nn.Linear(12, 6), layers.GroupSort2(), nn.Dropout(0.5)),
        layers.Scale(0.7),
        nn.Linear(6, 8, bias=False),
        nn.ReLU(),
        layers.GroupSort2(),
        nn.Linear(8, 3),
    )
    certified = CertifiedNetwork.prove(network, (3, 2, 2), dtype)
    plain = relu_form(certified)
    kinds = {type(part) for part in plain.modules()}
    assert kinds == {nn.Sequential, nn.Linear, nn.ReLU, layers.Residual, layers.Scale}
    X = 5 * torch.randn(200, 12, dtype=getattr(torch, dtype))
    expected = certified.network(X.reshape(-1, 3, 2, 2))
    rounding = 100 * torch.finfo(X.dtype).eps
    torch.testing.assert_close(plain(X), expected, rtol=rounding, atol=rounding * float(X.abs().max()))


def test_relu_form_is_a_copy(digits):
    clf = quick().fit(*(part[:200] for part in digits))
    plain = relu_form(clf.certified_network_)
    for parameter in plain.parameters():
        parameter.zero_()
    clf.certified_network_.check_unchanged()


@pytest.mark.parametrize("binary", [True, False])
def test_a_file_for_verifiers_gives_the_logits(digits, binary, tmp_path, run):
    X, y = digits
    X, y = X[:300], y[:300] % 2 if binary else y[:300]
    pipeline = make_pipeline(StandardScaler(with_std=False), PCA(20), quick()).fit(X, y)
    path = tmp_path / "digits.onnx"
    to_verifier_onnx(pipeline, path)
    model = onnx.load(path)
    assert {node.op_type for node in model.graph.node} <= KNOWN
    kinds = {each.data_type for each in model.graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    for optimised in (True, False):
        logits = run(path, X, optimised=optimised)["logits"]
        expected = pipeline.decision_function(X)
        np.testing.assert_allclose(logits[:, 0] if binary else logits, expected, rtol=1e-4, atol=2e-5)


def test_what_verifiers_do_not_read_is_refused(few_digits, tmp_path):
    X, y = few_digits
    images = X.reshape(-1, 8, 8)
    path = tmp_path / "digits.onnx"
    clf = quick(conv_channels=(4,), hidden_layer_sizes=(4,), max_epochs=1).fit(images, y)
    with pytest.raises(TypeError, match=r"Conv2d has no form .*architecture='mlp'"):
        to_verifier_onnx(clf, path)
    imputed = make_pipeline(SimpleImputer(), quick(max_epochs=1)).fit(X, y)
    with pytest.raises(TypeError, match="SimpleImputer has no form that other verifiers read"):
        to_verifier_onnx(imputed, path)

    def sorting(input_shape, n_outputs):
        return layers.Sequential(layers.FullSort(), layers.SpectralLinear(input_shape[0], n_outputs))

    with pytest.raises(TypeError, match="FullSort has no form"):
        to_verifier_onnx(quick(architecture=sorting, max_epochs=1).fit(X, y), path)
    with pytest.raises(NotFittedError):
        to_verifier_onnx(quick(), path)
    with pytest.raises(FileNotFoundError, match="path can't be written"):
        to_verifier_onnx(quick(max_epochs=1).fit(X, y), tmp_path / "missing" / "digits.onnx")
    assert list(tmp_path.iterdir()) == []


def test_images_of_dense_networks_are_rows(few_digits, tmp_path, run):
    X, y = few_digits
    images = X.reshape(-1, 8, 8)
    clf = quick(architecture="mlp").fit(images, y)
    to_verifier_onnx(clf, tmp_path / "digits.onnx")
    logits = run(tmp_path / "digits.onnx", X)["logits"]
    np.testing.assert_allclose(logits, clf.decision_function(images), rtol=1e-4, atol=1e-4)
