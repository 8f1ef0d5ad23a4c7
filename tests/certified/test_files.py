"""A network in a safetensors file: the same network for us, weights for everybody else."""

import builtins
import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from sklip import CertifiedNetwork, layers
from sklip.certified import load_network, save_network
from sklip.certified.seals import FORMAT

pytestmark = pytest.mark.usefixtures("seeded_torch")
SHAPE = (2, 4, 4)


def images(dtype="float32"):
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        layers.GroupSort2(),
        nn.AvgPool2d((2, 1), (2, 1)),
        nn.Flatten(),
        nn.Linear(32, 6, bias=False),
        nn.Sequential(nn.ReLU(), layers.Scale(1 / 3)),
        layers.Center(6),
        nn.Linear(6, 3),
    )
    return CertifiedNetwork.prove(network, SHAPE, dtype)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    torch.manual_seed(0)
    certified, path = images(), tmp_path_factory.mktemp("files") / "network.safetensors"
    save_network(certified, path)
    return certified, path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_comes_back_as_it_was(tmp_path, dtype):
    certified, path = images(dtype), tmp_path / "network.safetensors"
    save_network(certified, path)
    loaded, X = load_network(path), np.random.default_rng(0).normal(size=(20, *SHAPE))
    for one, other in zip(loaded.predict_with_radii(X), certified.predict_with_radii(X), strict=True):
        np.testing.assert_array_equal(one, other)
    assert repr(loaded.network) == repr(certified.network)
    assert loaded.network[2].kernel_size == (2, 1)
    assert loaded.arithmetic == certified.arithmetic


def test_others_find_the_weights_under_their_names(stored):
    certified, path = stored
    weights = safetensors.torch.load_file(path)
    certified_weights = certified.network.state_dict()
    assert weights.keys() == certified_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, certified_weights[name], rtol=0, atol=0)


def test_a_flipped_bit_is_an_error_or_of_no_effect(stored, tmp_path):
    certified, path = stored
    data, damaged_path, X = path.read_bytes(), tmp_path / "damaged", np.ones((3, *SHAPE))
    found, places = 0, np.random.default_rng(0).integers(8 * len(data), size=300).tolist()
    for place in places:
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        damaged_path.write_bytes(damaged)
        try:
            loaded = load_network(damaged_path)
        except (ValueError, TypeError):
            found += 1
            continue
        np.testing.assert_array_equal(loaded.radii(X), certified.radii(X))
    assert found > 0.9 * len(places)


def test_every_weight_is_under_the_seal(stored, tmp_path):
    data = stored[1].read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data), 97):
        damaged = bytearray(data)
        damaged[place] ^= 1
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ValueError, match="the stored network is damaged"):
            load_network(tmp_path / "damaged")


def test_truncated_and_foreign_files_are_refused(stored, tmp_path):
    data = stored[1].read_bytes()
    path = tmp_path / "other"
    files = [data[: len(data) * i // 10] for i in range(10)]
    files += [pickle.dumps(3), safetensors.torch.save({"weight": torch.ones(2)})]
    files += [safetensors.torch.save({"weight": torch.ones(2)}, {"sklip": "[]"})]
    for file in files:
        path.write_bytes(file)
        with pytest.raises(ValueError, match=r"is no complete file of .*save_network .* another copy"):
            load_network(path)


def test_another_format_says_which_version_reads_it(stored, tmp_path):
    data = stored[1].read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    words = json.loads(header["__metadata__"]["sklip"])
    words["_stored_"].update(format=FORMAT + 1, version="9.8")
    header["__metadata__"]["sklip"] = json.dumps(words)
    changed = json.dumps(header).encode()
    (tmp_path / "newer").write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
    with pytest.raises(ValueError, match=r"format 2 of sklip 9\.8.*load it with sklip 9\.8"):
        load_network(tmp_path / "newer")


def test_nothing_half_written_stays(stored, tmp_path, monkeypatch):
    certified, _ = stored
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="path can't be written"):
        save_network(certified, tmp_path / "missing" / "network")
    with pytest.raises(OSError, match="path can't be written"):
        save_network(certified, folder)
    path = tmp_path / "network"
    path.write_bytes(b"before")

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.file.write(data[:100])
            raise OSError(28, "No space left on device")

    opens = type(path).open
    monkeypatch.setattr(type(path), "open", lambda self, mode: Full(opens(self, mode)))
    with pytest.raises(OSError, match="No space left on device"):
        save_network(certified, path)
    monkeypatch.undo()
    assert path.read_bytes() == b"before"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "network"]


def test_the_extra_is_named_where_it_is_missing(stored, monkeypatch):
    imports = builtins.__import__

    def without(name, *arguments):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return imports(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"scikit-lipschitz\[storage\]"):
        load_network(stored[1])
