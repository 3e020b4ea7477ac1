"""The kernels against their formulas written out, against a block, and how they grow: ratios.

    python benchmarks/kernel_time.py                          # -> docs/results/kernel-time-cpu.json
    python benchmarks/kernel_time.py --device cuda --dtype bfloat16 --out docs/results/kernel-time-h200.json

Random tensors in the shapes of SigLIP so400m. Two tables:

    against   time of each form, relative to one block of timm with fused attention in the same round; the
              roofline: the least time that its operations and its bytes take at the rates of one large
              matrix product and of one copy in the same round, as a share of its time
    growth    time relative to the smallest size in the same round, and the most memory that was taken
              in addition to the inputs (on the CPU by a process of its own, read from Linux); the exponents
              are the slopes of the log-log plot from each size to the next, 1 for what grows linearly

`selection` is all that evoprune does at one site. `block again` is the noise. Time grows with the square of
the tokens whatever is done, as attention's does.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from collage_runs import rounded
from recorded import provenance
from timm.models.vision_transformer import Block
from torch import Tensor

import tokenzoo
from tokenzoo.kernels import choice, neighbour_density, received_attention
from tokenzoo.kernels.best_match import best_match
from tokenzoo.tools.timing import Timing, interleaved

HEADS, WIDTH, MLP = 16, 72, 4304
BLOCK, AGAIN = "block", "block again"
MEGABYTE = 2**20


def tensors(kernel: str, b: int, n: int, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What a kernel gets: queries and keys as views of one tensor, or features."""
    generator = torch.Generator().manual_seed(0)
    if kernel == "received_attention":
        both = torch.randn(b, n, 2, HEADS, WIDTH, generator=generator).to(device, dtype)
        query, key = both.permute(2, 0, 3, 1, 4)
        return query, key
    x = torch.randn(b, n, HEADS * WIDTH, generator=generator).to(device, dtype)
    if kernel == "selection":
        return (x, *tensors("received_attention", b, n, device, dtype))
    return (x,) if kernel == "neighbour_density" else (x[:, ::2], x[:, 1::2])


def received(query: Tensor, key: Tensor) -> Tensor:
    return received_attention(query, key, scale=WIDTH**-0.5)


def received_by_map(query: Tensor, key: Tensor) -> Tensor:
    return (query * WIDTH**-0.5 @ key.mT).float().softmax(-1).mean((1, 2))


def received_by_head(query: Tensor, key: Tensor) -> Tensor:
    maps = (q * WIDTH**-0.5 @ k.mT for q, k in zip(query.unbind(1), key.unbind(1), strict=True))
    return torch.stack([one.float().softmax(-1).mean(1) for one in maps]).mean(0)


def density(x: Tensor) -> Tensor:
    return neighbour_density(x, 5, None)


def density_by_matrix(x: Tensor) -> Tensor:
    x = x.float()
    squares = x.square().sum(-1)
    distance = torch.baddbmm(squares[:, None], x, x.mT, alpha=-2)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = distance.topk(5, largest=False).values + squares[..., None]
    return (-nearest / nearest.mean((1, 2), keepdim=True)).exp().mean(-1)


def match(left: Tensor, right: Tensor) -> object:
    return best_match(left, right)


def match_by_matrix(left: Tensor, right: Tensor) -> object:
    return (left @ right.mT).max(-1)


def selection(x: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """One site of evoprune, as on 729 -> 64: its three kernels, the order, the plan and the merging."""
    keep = x.shape[1] - round(x.shape[1] * 51 / 729)
    reduced = tokenzoo.build("evoprune", keep=keep).reduce(x, queries=query, keys=key)
    return reduced.x, reduced.mass


KERNELS: dict[str, dict[str, Callable[..., object]]] = {
    "received_attention": {
        "kernel": received,
        "head by head": received_by_head,
        "whole map": received_by_map,
    },
    "neighbour_density": {"kernel": density, "whole matrix": density_by_matrix},
    "best_match": {"kernel": match, "whole matrix": match_by_matrix},
    "selection": {"kernel": selection},
}


def work(kernel: str, b: int, n: int, item: int) -> tuple[float, float]:
    """The operations of a kernel, a multiply-add being two, and the bytes that it must read and write.

    The products alone; of the density half of them, which is symmetric. What is written is a few numbers
    per token.
    """
    c = HEADS * WIDTH
    return {
        "received_attention": (2 * b * n * n * c, b * (2 * n * c * item + 4 * n)),
        "neighbour_density": (b * n * n * c, b * (n * c * item + 4 * n)),
        "best_match": (2 * b * (n // 2) * (n - n // 2) * c, b * (n * c * item + 6 * n)),
    }[kernel]


CEILINGS = ("matrix product", "copy")


def ceilings(device: str, dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], float]]:
    """A large matrix product with its operations, and a large copy with its bytes."""
    side = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    source = torch.empty(2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        CEILINGS[0]: (partial(torch.matmul, left, right), 2.0 * side**3),
        CEILINGS[1]: (partial(target.copy_, source), 2.0 * source.numel()),
    }


def roofline(
    what: str, ratios: Mapping[str, Timing], rates: Mapping[str, float], b: int, n: int, item: int
) -> dict[str, Any]:
    """What bounds a kernel, and how near to that it is: 1 is the least time there can be."""
    kernel, _, form = what.partition(", ")
    if form != "kernel" or kernel == "selection":
        return {}
    least = {
        name: amount / (rates[name] / ratios[name].ratio)
        for name, amount in zip(CEILINGS, work(kernel, b, n, item), strict=True)
    }
    bound = max(least, key=lambda name: least[name])
    return {"bound_by": bound, "of_ceiling": least[bound] / ratios[what].ratio}


def against(given: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per kernel and form, at each batch size."""
    rows: list[dict[str, Any]] = []
    for b in given.batch:
        x = torch.randn(b, given.tokens, HEADS * WIDTH).to(given.device, dtype)
        mlp_ratio = MLP / (HEADS * WIDTH)
        block = Block(HEADS * WIDTH, HEADS, mlp_ratio, qkv_bias=True).eval().to(given.device, dtype)
        functions: dict[str, Callable[[], object]] = {BLOCK: partial(block, x)}
        for kernel in given.kernel:
            inputs = tensors(kernel, b, given.tokens, given.device, dtype)
            for form, function in KERNELS[kernel].items():
                functions[f"{kernel}, {form}"] = partial(function, *inputs)
        functions[AGAIN] = partial(block, x)
        tops = ceilings(given.device, dtype)
        functions |= {name: function for name, (function, _) in tops.items()}
        timings = interleaved(functions, rounds=given.rounds, baseline=BLOCK)
        rates = {name: amount for name, (_, amount) in tops.items()}
        for name, one in timings.items():
            roof = roofline(name, timings, rates, b, given.tokens, dtype.itemsize)
            rows.append({"batch": b, "what": name, **figures(one), **roof})
    return rows


def growth(given: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per kernel and size, for one image."""
    rows: list[dict[str, Any]] = []
    for kernel in given.kernel if given.sizes else []:
        functions: dict[str, Callable[[], object]] = {
            str(n): partial(KERNELS[kernel]["kernel"], *tensors(kernel, 1, n, given.device, dtype))
            for n in given.sizes
        }
        first = str(given.sizes[0])
        timings = interleaved(functions, rounds=given.growth_rounds, warmup=1, baseline=first)
        memory = [peak(kernel, n, given) for n in given.sizes]
        rows += [
            {"kernel": kernel, "tokens": n, "time": figures(timings[str(n)]), "megabytes": most}
            for n, most in zip(given.sizes, memory, strict=True)
        ]
    return rows


def exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Slopes of the log-log plot, from each size of a kernel to the next."""
    found: list[dict[str, Any]] = []
    for one, other in pairwise(rows):
        if one["kernel"] == other["kernel"]:
            far = math.log(other["tokens"] / one["tokens"])
            least = 1.0  # megabytes: what is less is noise of the allocator
            memory = max(other["megabytes"], least) / max(one["megabytes"], least)
            found.append(
                {
                    "kernel": one["kernel"],
                    "tokens": [one["tokens"], other["tokens"]],
                    "time": math.log(other["time"]["median"] / one["time"]["median"]) / far,
                    "memory": math.log(memory) / far,
                }
            )
    return found


def peak(kernel: str, n: int, given: argparse.Namespace) -> float:
    """Megabytes that one call takes in addition to its inputs, at most."""
    arguments = (kernel, n, given.device, given.dtype, given.threads)
    if given.device != "cpu":
        return _peak(*arguments)
    # What a process has taken it does not give back: each size has one of its own.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, arguments)


def _peak(kernel: str, n: int, device: str, dtype: str, threads: int) -> float:
    torch.set_num_threads(threads)
    function = KERNELS[kernel]["kernel"]
    with torch.inference_mode():
        function(*tensors(kernel, 1, 64, device, getattr(torch, dtype)))
        inputs = tensors(kernel, 1, n, device, getattr(torch, dtype))
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            before = resident("VmRSS")
            function(*inputs)
            return resident("VmHWM") - before
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(*inputs)
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE


def resident(field: str) -> float:
    """Megabytes that this process has (VmRSS), or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(field + ":"))
    return int(kilobytes) / 1024


def figures(timing: Timing) -> dict[str, Any]:
    return {"median": timing.ratio, "quartiles": [timing.low, timing.high]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--tokens", type=int, default=729)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[256, 512, 1024, 2048, 4096, 8192, 16384]
    )
    parser.add_argument("--growth-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--out", type=Path, default=Path("docs/results/kernel-time-cpu.json"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)
    with torch.inference_mode():
        times = against(given, dtype)
        grown = growth(given, dtype)
    content = {
        **provenance("benchmarks/kernel_time.py", arguments),
        "threads": given.threads,
        "device": "cpu" if given.device == "cpu" else torch.cuda.get_device_name(given.device),
        "dtype": given.dtype,
        "form": "triton" if choice.use_triton(torch.empty(0, device=given.device)) else "torch",
        "tokens": given.tokens,
        "against": times,
        "growth": grown,
        "exponents": exponents(grown),
    }
    given.out.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + "\n")
    print(table(content))


def table(content: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    lines = ["| batch | what | time of a block |", "|---|---|---|"]
    for row in content["against"]:
        low, high = row["quartiles"]
        lines.append(
            f"| {row['batch']} | {row['what']} | {row['median']:.3f} ({low:.3f} to {high:.3f}) |"
        )
    lines += ["", "| kernel | tokens | time | MB |", "|---|---|---|---|"]
    for row in content["growth"]:
        time = row["time"]["median"]
        lines.append(f"| {row['kernel']} | {row['tokens']} | {time:.2f} | {row['megabytes']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
