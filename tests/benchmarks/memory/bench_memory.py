"""What a rank holds of a 50-million-parameter network: parameters, optimizer state and average, in bytes.

Then of the same network frozen, in bfloat16 with `Frozen.shard`, and as the base of an adapter (of one of its
48 layers) with an average.

    make bench-memory ARGS="--ranks 2 4 --strategies ddp fsdp zero3"

Counts tensors after one step, not the process's memory, so it says the same on CPU and GPU. Gradients and
activations, which come and go, are left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sfumato.core.optimizer import OptimizerConfig
from sfumato.parallel import ParallelSettings, Placement, Strategy, make
from sfumato.parallel.adapters import Base
from sfumato.parallel.capabilities import Feature

WIDTH, DEPTH = (
    int(os.environ.get("BENCH_WIDTH", "1024")),
    47,
)  # by default 48 layers of 1024 x 1024 and their biases: 50.4 million parameters


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x


def measure(name: str) -> dict[str, int]:
    """Bytes on this rank after one step."""
    strategy = make(ParallelSettings(strategy=name), Placement.current())
    strategy.add_trainable("net", Mlp(), OptimizerConfig(name="adamw"))
    strategy.add_ema("ema", "net")
    strategy.add_frozen("frozen", Mlp().to(torch.bfloat16), shard=True)
    if Feature.ADAPTERS in strategy.features:
        strategy.add_trainable("adapter", Mlp(), OptimizerConfig(), base=Base(("blocks.0.*",), stored=True))
        strategy.add_ema("adapter-ema", "adapter")
    strategy.ready()
    with strategy.accumulate("net", last=True):
        strategy.backward("net", strategy.view("net")["net"](torch.ones(1, WIDTH)).square().mean())
    strategy.step("net", lr=1e-3, max_norm=1.0)
    strategy.follow("ema", 0.1)
    nets = {key: strategy._held(key) for key in ("net", "ema")}
    if engine := getattr(strategy, "_engines", {}).get("net"):
        optimizer, masters = (
            engine.optimizer.optimizer,
            [p for g in engine.optimizer.optimizer.param_groups for p in g["params"]],
        )
    else:
        optimizer, masters = strategy._optimizers["net"], []
    moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return {
        "parameters": size(nets["net"]),
        "optimizer": size([*moments, *masters]) - shared(masters, nets["net"]),
        "average": size(nets["ema"]),
        "frozen": held(strategy, "frozen"),
        "adapter": held(strategy, "adapter", "adapter-ema") if "adapter" in strategy._raw else 0,
    }


def held(strategy: Strategy, *names: str) -> int:
    """Bytes that a rank holds of networks after they were called, memory that they share counted once."""
    x = torch.ones(1, WIDTH)
    for name in names:
        net = strategy._raw[name]
        with torch.no_grad():
            net(x.to(next(net.parameters()).dtype))
    strategy._activate(None)  # frees what a network that trains keeps gathered after a forward pass
    parts = [part for name in names for part in strategy._raw[name].parameters()]
    local = [part.to_local() if isinstance(part, DTensor) else part for part in parts]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())


def size(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def shared(masters: list[Tensor], held: list[Tensor]) -> int:
    """Bytes of flat copies that are the parameters' own memory, as under stage 3 in float32."""
    storages = {t.untyped_storage().data_ptr() for t in held}
    return size([m for m in masters if m.untyped_storage().data_ptr() in storages])


def rank(strategies: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in strategies:
        found = measure(name)
        every: list[dict[str, int] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(every, found)
        if dist.get_rank() == 0:
            worst = {key: max(each[key] for each in every if each) for key in found}
            print("MEMORY " + json.dumps({"strategy": name, "ranks": len(every), **worst}), flush=True)
    dist.destroy_process_group()


def launch(ranks: int, strategies: list[str]) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", "--strategies", *strategies],
            env={
                **os.environ,
                "RANK": str(number),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"ranks exited with {[process.returncode for process in processes]}")
    lines = [line for line in outputs[0].splitlines() if line.startswith("MEMORY ")]
    return [json.loads(line.removeprefix("MEMORY ")) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp", "zero3"])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.strategies)
        return
    rows = [row for ranks in options.ranks for row in launch(ranks, options.strategies)]
    for row in rows:
        parts = ", ".join(
            f"{key} {row[key] / 2**20:,.0f} MiB"
            for key in ("parameters", "optimizer", "average", "frozen", "adapter")
        )
        print(f"{row['strategy']:>6} x {row['ranks']}: {parts}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
