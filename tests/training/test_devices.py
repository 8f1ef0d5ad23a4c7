"""Devices by name, and whether values fit on them."""

import pytest
import torch

from sklip.training.devices import available_device, fits_on, resolve_device

HAS_CUDA = torch.cuda.is_available()
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_auto_is_the_first_cuda_device_or_the_cpu(device):
    assert resolve_device("auto") == device


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_of_this_machine_keeps_its_name(device):
    assert resolve_device(device) == device
    assert resolve_device(torch.device(device)) == device
    assert available_device(device) == device


@pytest.mark.skipif(HAS_CUDA, reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_cuda_without_cuda_is_refused(device):
    with pytest.raises(ValueError, match=rf"^device must name a device.*'{device}'.*\['cpu'\]"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["cuda:99", "tpu9", "", "cpu:cpu"])
def test_devices_that_are_not_there_are_refused_by_name(device):
    with pytest.raises(
        ValueError, match=rf"^device must name a device of this machine, got '{device}'"
    ):
        resolve_device(device)
    assert available_device(device) == "cpu"


def test_everything_is_taken_to_fit_on_the_cpu():
    assert fits_on("cpu", torch.zeros(1).expand(2**60))


@pytest.mark.parametrize(("free", "fits"), [(799, False), (800, True)])
def test_half_of_what_is_free_on_a_gpu_is_left_for_everything_else(free, fits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    assert fits_on("cuda", torch.zeros(100)) is fits
