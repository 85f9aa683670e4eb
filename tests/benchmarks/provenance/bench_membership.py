"""Can it be told which digits a small autoregressive model was trained on? By loss threshold and by LiRA.

The model (`pipelines/digits/pixelcnn.yaml`, smaller) learns 0.15 of the 1,797 digits, so that over a
thousand others are left, which a true positive rate at 0.1 % false positives needs. Shadow models learn other
random parts of this size. Prints both attacks; the last line is JSON.

    make bench-membership ARGS="--images 24000 --shadows 8"
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from bare_runs import trained

from sfumato.data.packing.pack import pack
from sfumato.data.packing.subset import subset
from sfumato.runtime.commands.membership import infer, text_of
from sfumato.runtime.runs.display import Display


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000, help="That each model sees.")
    parser.add_argument("--share", type=float, default=0.15, help="Of the digits that each learns.")
    parser.add_argument("--shadows", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=["model.network.width=48", "model.network.layers=4"])
    parser.add_argument("--out", type=Path, help="Where the ROC curves go.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = [f"train.images={options.images}", "train.batch=64", "train.micro_batch=64", *options.set]
    with tempfile.TemporaryDirectory(prefix="sf-") as folder, Display() as display:
        root = Path(folder)
        pack("digits", root / "digits")
        runs = []
        for seed in range(1 + options.shadows):
            data = root / f"part-{seed}"
            subset(str(root / "digits"), data, share=options.share, seed=seed)
            runs.append(str(root / "runs" / f"run-{seed}"))
            spent = trained(Path(runs[-1]), "digits/pixelcnn.yaml", changes, data, seed)
            print(f"run {seed}: {spent:.0f} CPU s", flush=True)
        report = infer(
            runs[0],
            [str(root / "digits")],
            shadows=runs[1:],
            seed=0,
            out=options.out,
            root=root,
            display=display,
        )
    print(text_of(report), flush=True)
    print(json.dumps({"images_seen": options.images, "share": options.share, **report}))


if __name__ == "__main__":
    main()
