"""Ranks of a real process group resume from a checkpoint and read no more of it than they hold."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from sfumato.core.optimizer import OptimizerConfig
from sfumato.parallel import ParallelSettings, Placement, make
from sfumato.parallel.strategy import Strategy
from sfumato.training import checkpoint as checkpoints
from sfumato.training.ranks import Ranks
from sfumato.training.resume import newest_whole
from sfumato.training.store import LocalStore

WIDTH, LAYERS = 512, 6


class Counting(LocalStore):
    """Counts the bytes that tensors are taken from."""

    read_bytes = 0

    def open(self, folder, name, scratch):
        file, store = super().open(folder, name, scratch), self

        class Counted:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def seek(self, to):
                return file.seek(to)

            def read(self, size=-1):
                content = file.read(size)
                store.read_bytes += len(content)
                return content

        return Counted()


def build(name: str) -> Strategy:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    strategy = make(ParallelSettings(strategy=name), Placement.current())
    strategy.add_trainable("net", net, OptimizerConfig())
    strategy.ready()
    return strategy


def fill(strategy: Strategy, value: float) -> None:
    with torch.no_grad():
        for name, tensor in strategy.state().items():
            tensor.fill_(value) if name.startswith("nets/") else None


def save(strategy: Strategy, root: str, images: int) -> None:
    writer = checkpoints.Writer(
        LocalStore(Path(root)), keep=None, recipe_digest="r", strategy=strategy.name, scratch=Path(root)
    )
    writer.save(strategy.state(), images=images, step=1)
    writer.close()
    assert writer.failures == []


def resume(strategy: Strategy, root: str) -> tuple[int, float]:
    """Images resumed at, and the part of the checkpoint's bytes that this rank has read to fill its state."""
    store = Counting(Path(root))
    saved = newest_whole(store, Path(root), Ranks.current())
    assert saved is not None
    strategy.load(checkpoints.tensors(store, saved, Path(root)))
    return saved.images, store.read_bytes / sum(entry.bytes for entry in saved.manifest.files.values())


def rank_main(rank: int, port: int, root: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for images, writes in ((100, "fsdp"), (200, "ddp")):
        strategy = build(writes)
        save(strategy, root, images)
        for reads, most in (("fsdp", 0.56), ("ddp", 1.05)):
            strategy = build(reads)
            fill(strategy, 7.0)
            found, part = resume(strategy, root)
            assert found == images
            assert part < most, f"{reads} from {writes}: rank {rank} reads {part:.2f} of the checkpoint"
            assert part > 0.4
            got, fresh = strategy.weights(["net"]), build("ddp").weights(["net"])
            for key, tensor in fresh.get("net", {}).items():
                assert torch.equal(got["net"][key], tensor), key
    if rank == 0:  # a file of the other rank
        (file,) = Path(root).glob("images-000000000200-*/__1_0.distcp")
        file.write_bytes(file.read_bytes()[:-1])
    dist.barrier()
    assert resume(build("fsdp"), root)[0] == 100, "all ranks fall back"
    dist.destroy_process_group()


def test_ranks_read_what_they_hold(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen([sys.executable, "-W", "ignore", __file__, str(rank), str(port), str(tmp_path)])
        for rank in range(2)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    alone = build("single")
    fill(alone, 7.0)
    assert resume(alone, str(tmp_path))[0] == 100, "two sharded ranks' checkpoint, by one process"
    for key, tensor in build("single").weights(["net"])["net"].items():
        assert torch.equal(alone.weights(["net"])["net"][key], tensor), key


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
