"""A GPU that torch cannot use is named in one line, and never replaced by the CPU."""

from __future__ import annotations

import pytest
import torch

from mdaug import distributed
from shards.errors import UserError


@pytest.fixture(autouse=True)
def asked_anew():
    distributed.require_usable_gpu.cache_clear()
    yield
    distributed.require_usable_gpu.cache_clear()


def test_a_driver_older_than_the_wheel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"driver is too old .*13\.2.*CUDA_VISIBLE_DEVICES=") as error:
        distributed.device()
    assert "\n" not in str(error.value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    distributed.require_usable_gpu.cache_clear()
    assert distributed.device() == torch.device("cpu")


@pytest.mark.parametrize(("capability", "refused"), [((6, 0), True), ((7, 0), True), ((7, 5), False), ((9, 0), False)])
def test_a_card_older_than_the_wheel(monkeypatch, capability, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla P100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "compute_120"])
    if not refused:
        distributed.require_usable_gpu()
        return
    with pytest.raises(UserError, match=r"P100.*capability 6\.0|capability 7\.0.*7\.5 and newer") as error:
        distributed.require_usable_gpu()
    assert "\n" not in str(error.value)
