"""What of an adapter trains, and how a sharded network is gathered for its methods: on one rank."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from library_folders import tiny_autoencoder
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sfumato.core.optimizer import OptimizerConfig
from sfumato.errors import CapabilityError
from sfumato.parallel import Placement, StrategyOptions
from sfumato.parallel.adapters import Base
from sfumato.parallel.strategies.fsdp import Fsdp
from sfumato.parallel.strategies.single import Single


class Adapted(nn.Module):
    """A base with batch statistics and dropout, and an adapter with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.adapter = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.adapter(x)


def test_statistics_and_dropout_of_the_base_stand_still() -> None:
    strategy, net = Single(Placement()), Adapted()
    strategy.add_trainable("net", net, OptimizerConfig(), base=Base(("adapter.*",), stored=True))
    strategy.add_ema("ema", "net")
    strategy.ready()
    nets = strategy.view("net")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    strategy.backward("net", nets["net"](torch.randn(8, 3)).square().mean())
    strategy.step("net", lr=0.1, max_norm=None)
    strategy.follow("ema", 0.5)
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.startswith("adapter.")}
    assert not net.base[2].training and net.adapter[2].training
    average = nets["ema"].state_dict()
    assert torch.equal(average["adapter.1.running_mean"], net.adapter[1].running_mean)
    assert strategy.weights(["ema"])["ema"].keys() == {key for key in before if key.startswith("adapter.")}


def test_an_adapter_whose_base_is_stored_nowhere_is_exported_whole() -> None:
    strategy, net = Single(Placement()), Adapted()
    strategy.add_trainable("net", net, OptimizerConfig(), base=Base(("adapter.*",), stored=False))
    strategy.ready()
    assert strategy.weights(["net"])["net"].keys() == net.state_dict().keys()
    assert all("adapter." in name for name in strategy.state())


def test_a_pattern_that_nothing_matches_is_an_error() -> None:
    with pytest.raises(CapabilityError, match=r"network 'net' has no tensor 'lora\.\*'"):
        Single(Placement()).add_trainable(
            "net", Adapted(), OptimizerConfig(), base=Base(("adapter.*", "lora.*"), stored=True)
        )


@pytest.fixture
def one_rank() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@torch.no_grad()
@pytest.mark.parametrize("offload", [False, True])
def test_a_sharded_frozen_network_is_gathered_for_every_method(offload: bool, one_rank: None) -> None:
    plain, x = tiny_autoencoder().eval(), torch.randn(2, 1, 8, 8)
    strategy = Fsdp(Placement(), StrategyOptions(offload=offload))
    strategy.add_frozen("vae", tiny_autoencoder(), shard=True)
    strategy.add_trainable("net", nn.Linear(2, 2), OptimizerConfig())
    strategy.ready()
    vae = strategy.view("net")["vae"]
    assert all(isinstance(parameter, DTensor) for parameter in vae.parameters())
    mean = vae.encode(x).latent_dist.mean
    # Gathered tensors lie elsewhere in memory, which chooses other kernels: equal but for rounding.
    torch.testing.assert_close(mean, plain.encode(x).latent_dist.mean)
    torch.testing.assert_close(vae.decode(mean).sample, plain.decode(mean).sample)
    torch.testing.assert_close(vae(x).sample, plain(x).sample)  # which calls encode and decode
    assert all(isinstance(parameter, DTensor) for parameter in vae.parameters()), "freed again"
    assert not any("vae" in name for name in strategy.state())
    with strategy.gathered(["vae"]) as nets:
        torch.testing.assert_close(nets["vae"].encode(x).latent_dist.mean, mean)
    weights = strategy.weights(["vae"])["vae"]
    assert all(torch.equal(weights[key], value) for key, value in plain.state_dict().items())
