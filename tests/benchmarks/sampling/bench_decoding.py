"""What each way of drawing codes costs: seconds an image, passes a code, and how many proposals are right.

    make bench-decoding ARGS="--data data/mnist"

Codes are those of k-means over 2x2 patches of the images at 32x32 pixels: 256 codes an image. Both networks
are LlamaGen's, the model of 8 layers, the draft of one, and are trained here on the same codes for `--train`
seconds in all, since what a draft saves depends on what it learned. Guidance is off. The peer is the plain
loop without a cache. All ways draw from the same random numbers; that they give the same codes is checked.
The last line is JSON with everything and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.conditions import Condition
from sfumato.core.rng import seeded
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.families.autoregressive.drawing.decoding import draw_codes
from sfumato.families.autoregressive.drawing.reader import Ask
from sfumato.families.autoregressive.layers.llama_network import LlamaNetwork
from sfumato.families.autoregressive.sampling import SamplingConfig

SIDE, GRID, LENGTH, NONE = 32, 16, 256, 0
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"decoding": "plain"},
    "jacobi": {"decoding": "jacobi"},
    "cache": {"decoding": "cache"},
    "cache, paged": {"decoding": "cache", "cache": "paged"},
    "speculative": {"decoding": "speculative"},
    "speculative, paged": {"decoding": "speculative", "cache": "paged"},
    "speculative, rejection": {"decoding": "speculative", "speculation": "rejection"},
}
COSTLY = ("plain", "jacobi")
"""Ways that are measured for one image at a time alone."""


def codes_of(data: str, images: int, size: int) -> Tensor:
    """int64 [images, 256]: the nearest of `size` patches."""
    rows = rows_of_data(data, [Condition("image", "image", "image")])["image"]
    x_NCHW = rows.read(list(range(min(images, len(rows)))))
    assert isinstance(x_NCHW, Tensor)
    x_NCHW = F.interpolate(x_NCHW.float().mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear")
    patches_PD = F.unfold(x_NCHW, 2, stride=2).transpose(1, 2).reshape(-1, 4).numpy()
    some = patches_PD[np.random.default_rng(0).permutation(len(patches_PD))[:100_000]]
    means = MiniBatchKMeans(size, random_state=0, n_init=1).fit(some)
    return torch.from_numpy(means.predict(patches_PD)).long().view(-1, LENGTH)


def network(codes: int, layers: int, width: int, seed: int) -> LlamaNetwork:
    with seeded(seed):
        return LlamaNetwork(
            codes, (GRID, GRID), 1, width=width, layers=layers, heads=width // 32, multiple=32
        )


def train(model: LlamaNetwork, codes_NT: Tensor, seconds: float, batch: int = 4) -> dict[str, float]:
    """In bfloat16 until the time is over; the last steps' mean bits a code, and the images seen."""
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    generator, losses = torch.Generator().manual_seed(0), []
    start = time.process_time()
    while (spent := time.process_time() - start) < seconds:
        for group in adam.param_groups:
            group["lr"] = 1e-3 * min(1.0, len(losses) / 40, 1.02 - spent / seconds)
        rows = torch.randint(len(codes_NT), (batch,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(codes_NT[rows, :-1], torch.zeros(batch, dtype=torch.int64))
        loss = F.cross_entropy(logits.transpose(1, 2), codes_NT[rows])
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        losses.append(loss.item())
    bits = sum(losses[-40:]) / len(losses[-40:]) / np.log(2)
    return {"images": len(losses) * batch, "bits_per_code": round(float(bits), 4)}


@torch.no_grad()
def measured(
    model: LlamaNetwork, draft: LlamaNetwork, way: dict[str, Any], rows: int, images: int, proposals: int
) -> tuple[dict[str, float], Tensor]:
    """Seconds of CPU an image, and the codes."""
    options = SamplingConfig(draft_length=proposals, **way)
    parts = [3] if options.speculation == "rejection" else []
    spent, passes, proposed, accepted, found = 0.0, 0, 0, 0, []
    for first in range(0, images, rows):
        numbers = torch.rand(rows, LENGTH, *parts, generator=torch.Generator().manual_seed(first))
        label = torch.zeros(rows, dtype=torch.int64)
        ask = Ask(label, LENGTH, NONE, False, options, label.new_zeros(rows, 0))
        start = time.process_time()
        found.append(draw_codes(model, ask, numbers, draft))
        spent += time.process_time() - start
        passes, proposed = passes + ask.passes.model, proposed + ask.passes.proposed
        accepted += ask.passes.accepted
    result = {"cpu_seconds": spent / images, "passes_per_code": passes / LENGTH / (images / rows)}
    if proposed:
        result["accepted"] = accepted / proposed
    return {name: round(value, 4) for name, value in result.items()}, torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/digits", help="packed images")
    parser.add_argument("--pictures", type=int, default=8_000, help="of the data that both learn from")
    parser.add_argument("--codes", type=int, default=64, help="patches that stand for all")
    parser.add_argument("--train", type=float, default=540, help="seconds of CPU; a fifth for the draft")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--proposals", type=int, default=6, help="of the draft at a time")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="images drawn at once")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    codes_NT = codes_of(options.data, options.pictures, options.codes)
    model = network(options.codes, 8, options.width, 0)
    draft = network(options.codes, 1, options.width // 2, 1)
    found: dict[str, Any] = {"benchmark": "decoding", **vars(options)}
    found["data"] = Path(options.data).name
    found["model"] = train(model, codes_NT, 0.8 * options.train)
    found["draft"] = train(draft, codes_NT, 0.2 * options.train)
    print(f"model {found['model']}, draft {found['draft']}", flush=True)
    print(f"{'way':>24} {'rows':>5} {'s an image':>11} {'passes':>7} {'accepted':>9} {'x cache':>8}")
    found["ways"] = []
    for rows in options.rows:
        base, expected = None, None
        images = max(rows, options.images)
        ways = {name: way for name, way in WAYS.items() if rows == 1 or name not in COSTLY}
        for name in sorted(ways, key=lambda name: name != "cache"):
            each, codes = measured(model, draft, ways[name], rows, images, options.proposals)
            base = base or each["cpu_seconds"]
            expected = codes if expected is None else expected
            same = float((codes == expected).all(1).float().mean())
            times = base / each["cpu_seconds"]
            found["ways"].append({"way": name, "rows": rows, **each, "same": same, "times_cache": times})
            right = f"{each['accepted']:.3f}" if "accepted" in each else ""
            print(
                f"{name:>24} {rows:>5} {each['cpu_seconds']:>11.3f} {each['passes_per_code']:>7.3f} "
                f"{right:>9} {times:>8.2f}",
                flush=True,
            )
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
