"""ToMe's own patch against our `tome`, at equal r, in one run: the same logits, and times as ratios.

    git clone https://github.com/facebookresearch/ToMe tome
    python benchmarks/tome_peer.py --tome tome                # -> docs/results/tome-peer-cpu.json
    python benchmarks/tome_peer.py --tome tome --model vit-l/16-384 --batch 64 --device cuda \\
        --dtype bfloat16 --mode compile --out FILE

ToMe (CC-BY-NC 4.0) is imported and run as its README tells; nothing of it is copied or kept. Both have
proportional attention, its default. The models have random weights, and all share one set of them. First
the logits are compared in float32, relative to the largest; also with weights of the attention that are
larger, so that keys differ more and the best pairs are far from ties. Logits that differ end the run.

Then, in every round, each is called once: the bare model, twice, for the noise; the patch; `tome`; and
`tome` with nothing to remove, as keep=1.0 and as r=0. Times are ratios to the bare model's in the same
round, throughputs to the patch's. `blocks alone` runs the model's own blocks on as many tokens as `tome`
leaves, without choosing them: what no selection, however fast, gets below with these blocks.

Next to each time is how many pages of memory the kernel had to hand out in that call: what is larger than
the allocator keeps (in glibc 32 MiB) comes fresh each time, and a map of attention soon is. `MALLOC_...`
variables, which change that, are recorded. `--linear onednn` gives all of them linear layers by oneDNN.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from collage_runs import rounded
from recorded import provenance
from torch import Tensor, nn

import tokenzoo
from tokenzoo.errors import BadArgumentError, TokenzooError
from tokenzoo.tools.timing import Timing, interleaved

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit-b/16": ("vit_base_patch16_224", {}),
    "vit-l/16-384": ("vit_large_patch16_384", {}),
    "tiny": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3, "num_classes": 10}),
}
BARE, AGAIN = "bare", "bare again"
OTHER = "bare, linear layers by torch"
PATCH, OURS, ALONE = "the original", "tome", "blocks alone"
NOTHING: dict[str, dict[str, Any]] = {"tome, keep=1.0": {"keep": 1.0}, "tome, r=0": {"r": 0}}


class UnequalError(TokenzooError):
    """The original and ours do not compute the same: their times say nothing about each other."""


def original(path: Path) -> Any:
    """The package `tome` of a checkout.

    Raises:
        BadArgumentError: there is none, or it has no `patch.timm`.
    """
    if not (path / "tome").is_dir():
        raise BadArgumentError(
            f"--tome {path}: there is no folder {path / 'tome'}; pass a checkout of facebookresearch/ToMe"
        )
    for name in [name for name in sys.modules if name.split(".")[0] == "tome"]:
        del sys.modules[name]
    sys.path.insert(0, str(path.resolve()))
    try:
        tome = import_module("tome")
        if not callable(tome.patch.timm):
            raise AttributeError("tome.patch.timm is no function")
    except (ImportError, AttributeError) as error:
        raise BadArgumentError(
            f"--tome {path}: it cannot be used ({type(error).__name__}: {error}); pass a checkout of "
            "facebookresearch/ToMe, whose `tome.patch.timm(model)` is called"
        ) from error
    finally:
        sys.path.pop(0)
    return tome


class Packed(nn.Module):
    """A linear layer by oneDNN, for inference; the weight is in the layout that it wants.

    torch's own goes through MKL, which on CPUs of another maker can be less than half as fast.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return self  # it has no state, and oneDNN's layout cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packed(model: nn.Module, rows: int) -> nn.Module:
    """A copy with linear layers by oneDNN, for inputs of about so many rows."""
    copy = copy_of(model)
    for module in list(copy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Packed(child, rows))
    return copy


def copy_of(model: nn.Module) -> Any:
    """A model of its own, with the same weights."""
    return deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def patched(tome: Any, model: nn.Module, r: int) -> nn.Module:
    """A copy with the original's patch, which cannot be taken off again."""
    copy = copy_of(model)
    tome.patch.timm(copy, prop_attn=True)
    copy.r = r
    return copy


def attached(model: nn.Module, **options: Any) -> nn.Module:
    """A copy with our recipe."""
    copy = copy_of(model)
    tokenzoo.build("tome", **options).attach(copy)
    return copy


def alone(model: Any, counts: Sequence[int], x: Tensor) -> Tensor:
    """The bare blocks, on the first tokens only: `counts` patch tokens after each."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    for block, count in zip(model.blocks, counts, strict=True):
        x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
        x = x[:, : model.num_prefix_tokens + count]
        x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return model.forward_head(model.norm(x))


def made(name: str, device: str) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A model of random weights, and a function that makes a batch of images of its size."""
    torch.manual_seed(0)
    known, options = MODELS.get(name, (name, {}))
    with torch.device(device):
        model: Any = timm.create_model(known, **options).eval()
    size = model.patch_embed.img_size

    def images(batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, *size, generator=generator).to(device)

    return model, images


def livelier(model: nn.Module, scale: float) -> nn.Module:
    """A copy whose projections to queries, keys and values are so many times larger."""
    copy = deepcopy(model)
    with torch.no_grad():
        for block in copy.blocks:
            block.attn.qkv.weight.mul_(scale)
    return copy


def compare(
    tome: Any, name: str, model: nn.Module, x: Tensor, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """The largest difference of the logits, relative to the largest logit, for every r and scale.

    Raises:
        UnequalError: one is above the tolerance.
    """
    rows: list[dict[str, Any]] = []
    for scale in given.scale:
        lively = livelier(model, scale)
        for r in given.r:
            runs = lively, patched(tome, lively, r), attached(lively, r=r)
            with torch.inference_mode():
                bare, theirs, ours = (run(x) for run in runs)
            gap = float((theirs - ours).abs().max() / theirs.abs().max())
            if not gap <= given.tolerance:
                raise UnequalError(
                    f"{name}, r={r}, weights x {scale:g}: the logits of the original and ours differ by "
                    f"{gap:.2g} of the largest, more than --tolerance {given.tolerance:g}: their times "
                    "cannot be compared"
                )
            moved = float((theirs - bare).abs().max() / theirs.abs().max())
            rows.append({"model": name, "r": r, "scale": scale, "gap": gap, "from_bare": moved})
    return rows


def candidates(
    tome: Any, model: nn.Module, given: argparse.Namespace, batch: int
) -> dict[str, tuple[int | None, Callable[[Tensor], Any]]]:
    """What is called with a batch, by name; with its r."""
    found: dict[str, tuple[int | None, Callable[[Tensor], Any]]] = {}
    if given.linear == "onednn":
        found[OTHER] = None, copy_of(model)
        model = packed(model, batch * model.patch_embed.num_patches)
    found[BARE] = None, copy_of(model)
    for r in given.r:
        counts = tokenzoo.build("tome", r=r).plan(model.patch_embed.num_patches, len(model.blocks))
        found[f"{PATCH}, r={r}"] = r, patched(tome, model, r)
        found[f"{OURS}, r={r}"] = r, attached(model, r=r)
        found[f"{ALONE}, r={r}"] = r, partial(alone, copy_of(model), counts.blocks)
    found |= {name: (None, attached(model, **options)) for name, options in NOTHING.items()}
    found[AGAIN] = None, copy_of(model)
    if given.mode == "compile":
        # Each candidate has versions of its own of the same functions.
        limits: Any = torch._dynamo.config
        limits.recompile_limit = limits.accumulated_recompile_limit = 256
        found = {name: (r, torch.compile(f, dynamic=False)) for name, (r, f) in found.items()}
    return found


def measure(
    tome: Any, name: str, model: nn.Module, x: Tensor, given: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Times relative to the bare model's, and throughputs relative to the original's."""
    running = candidates(tome, model, given, len(x))
    faults: dict[str, list[int]] = {what: [] for what in running}

    def call(what: str) -> None:
        before = pages()
        running[what][1](x)
        faults[what].append(pages() - before)

    functions = {what: partial(call, what) for what in running}
    with torch.inference_mode():
        timings = interleaved(functions, rounds=given.rounds, warmup=2, baseline=BARE)
    about = {"model": name, "batch": len(x)}
    times = [
        {
            **about,
            "what": what,
            "r": running[what][0],
            **figures(one),
            "pages": median(faults[what][-given.rounds :]),
        }
        for what, one in timings.items()
    ]
    faster: list[dict[str, Any]] = []
    for r in given.r:
        theirs = timings[f"{PATCH}, r={r}"].ratios
        for what in (OURS, ALONE):
            ours = timings[f"{what}, r={r}"].ratios
            speed = Timing(tuple(a / b for a, b in zip(theirs, ours, strict=True)))
            faster.append({**about, "what": what, "r": r, **figures(speed)})
    return times, faster


def figures(timing: Timing) -> dict[str, Any]:
    return {"median": timing.ratio, "quartiles": [timing.low, timing.high]}


def pages() -> int:
    """How many pages this process has asked the kernel for; 0 where nobody counts them."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def commit_of(path: Path) -> str | None:
    """The commit of a checkout, where git knows it."""
    command = ["git", "-C", str(path), "rev-parse", "HEAD"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tome", type=Path, required=True, help="a checkout of ToMe's repository")
    parser.add_argument("--model", nargs="+", default=["vit-b/16", "vit-l/16-384"])
    parser.add_argument("--r", type=int, nargs="+", default=[8])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument(
        "--linear", choices=["torch", "onednn"], default="torch", help="whose linear layers"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/tome-peer-cpu.json"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if given.linear == "onednn" and (given.device, given.dtype) != ("cpu", "float32"):
        raise BadArgumentError(
            f"--linear onednn with --device {given.device} --dtype {given.dtype}; it is for float32 on the "
            "CPU: leave it out"
        )
    tome = original(given.tome)
    dtype = getattr(torch, given.dtype)
    gaps: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    faster: list[dict[str, Any]] = []
    for name in given.model:
        model, images = made(name, given.device)
        gaps += compare(tome, name, model, images(2), given)
        model = model.to(dtype)
        for batch in given.batch:
            more = measure(tome, name, model, images(batch).to(dtype), given)
            times, faster = times + more[0], faster + more[1]
    head = provenance("benchmarks/tome_peer.py", arguments)
    head["versions"]["original"] = commit_of(given.tome)
    content = {
        **head,
        "threads": given.threads,
        "device": "cpu" if given.device == "cpu" else torch.cuda.get_device_name(given.device),
        "dtype": given.dtype,
        "mode": given.mode,
        "linear": given.linear,
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        "rounds": given.rounds,
        "logits": gaps,
        "time": times,
        "throughput": faster,
    }
    given.out.write_text(json.dumps(settled(content), indent=1, allow_nan=False) + "\n")
    print(table(content))


def settled(content: dict[str, Any]) -> dict[str, Any]:
    """Five decimals, but of the logits' differences, which are smaller."""
    gaps = [{**row, "gap": float(f"{row['gap']:.3g}")} for row in content["logits"]]
    return {**rounded(content), "logits": gaps}


def table(content: dict[str, Any]) -> str:
    """All figures in Markdown."""
    lines = ["| model | r | weights | difference of the logits |", "|---|---|---|---|"]
    lines += [
        f"| {row['model']} | {row['r']} | x {row['scale']:g} | {row['gap']:.1e} |"
        for row in content["logits"]
    ]
    heads = {"time": "time of the bare model", "throughput": "throughput of the original"}
    for key, head in heads.items():
        more = " | pages |" if key == "time" else " |"
        lines += [
            "",
            f"| model | batch | what | {head}{more}",
            "|---" * (3 + more.count("|")) + "|",
        ]
        for row in content[key]:
            what = row["what"] if key == "time" else f"{row['what']}, r={row['r']}"
            low, high = row["quartiles"]
            lines.append(
                f"| {row['model']} | {row['batch']} | {what} | {row['median']:.3f} "
                f"({low:.3f} to {high:.3f}) |"
                + (f" {row['pages']:.0f} |" if "pages" in row else "")
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
