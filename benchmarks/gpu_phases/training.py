"""An update of packed training beside padded training (train_throughput.py's arms), and its share of the measured peak.

XLM-R-large's shape, bf16: both arms at a batch that the padded one can hold, then ours alone at the original's 150 pairs; with
--compile ours alone, compiled. Weights are made on the device.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial, partialmethod
from typing import Any

import torch
import train_throughput
from clock import peak
from telling import flags, say
from torch import nn

from mexma_train.config import MexmaConfig


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        toy = "--shape toy --device cpu --precision fp32 --pairs 2 --steps 1 --rounds 1 --warmup 1"
        settings = [f"{toy} --arms ours --compile" if args.compile else toy]
        layers: Any = nn.Module
        layers.compile = partialmethod(nn.Module.compile, backend="eager")  # traced, but no compiler has to be there
    else:
        large = "--shape large --device cuda --precision bf16 --steps 3 --rounds 3 --warmup 2"
        alone = f"{large} --arms ours --pairs 150 --vocabulary-chunk 4096"
        settings = [f"{alone} --compile"] if args.compile else [f"{large} --pairs 64", alone]
    for words in settings:
        chosen = train_throughput.parser().parse_args(words.split())
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[chosen.precision]
        config, peak_now = replace(MexmaConfig(steps=1), precision=chosen.precision), partial(peak, dtype, chosen.device)
        result = train_throughput.measure(chosen, config, resident={}, peak=peak_now)
        rounds = result["rounds"]
        for arm in chosen.arms:
            say(
                what=arm,
                settings=words,
                tokens_per_second=statistics.median(r["tokens"] / r["seconds"][arm] for r in rounds),
                tokens_an_update=rounds[0]["tokens"] / chosen.steps,
                times_the_padded=[r["seconds"]["padded"] / r["seconds"][arm] for r in rounds]
                if "padded" in chosen.arms
                else None,
                tflops=statistics.median(r["flops"] / r["seconds"][arm] for r in rounds) / 1e12,
                peak_tflops=result["peak"] / 1e12,
                share_of_peak=statistics.median(r["flops"] / r["seconds"][arm] for r in rounds) / result["peak"],
                gigabytes=result["memory"][arm] / 1e9,
                first_loss=result["first"][arm][0],
                first_gradient_norm=result["first"][arm][1],
            )


if __name__ == "__main__":
    main()
