"""What the selection of every recipe costs, as a share of one block of the encoder.

    python benchmarks/selection_time.py                    # -> docs/results/selection-time-cpu.json

Random tensors in the shapes of CLIP-L (1,024 channels, 16 heads): 576 tokens, which is one image of 336
pixels, and 2,880, five of them side by side. Timed is `Method.reduce`, which is evidence, matching and
merging; received and CLS attention are computed in it from queries and keys. What a language model's
layer or a text encoder computes (last-token attention, text) is given. Each time is divided by that of
one block of timm with fused attention on as many tokens, in the same round; `block again` is the noise.
Kept is a fifth, or the fewest that one step reaches; of a recipe with several steps it is the first.

`operations` counts what torch is asked to do; `per token kept` is how many more there are for each token
more that is kept (a loop over tokens has some), and `per image` how many for each image more (a loop over
images).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from collage_runs import rounded
from recorded import provenance
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tokenzoo
from tokenzoo.tools.timing import interleaved
from tokenzoo.zoo import Method

HEADS, WIDTH, MLP = 16, 64, 4.0
CHANNELS = HEADS * WIDTH
TEXT = 40  # tokens of a question
BLOCK, AGAIN = "block", "block again"
GRIDS = {576: (24, 24), 2880: (48, 60)}


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def one_step(name: str, tokens: int, keep: int) -> Method:
    """A recipe, or the first step of one, that keeps so many of the tokens, or the fewest it can."""
    recipe = tokenzoo.build(name).recipe
    step = recipe.steps[0]
    return tokenzoo.build(tokenzoo.Recipe(step, keep=max(keep, step.matcher.min_tokens(tokens, 1))))


def grid_of(tokens: int) -> tuple[int, int]:
    """Rows and columns, as square as can be."""
    rows = next(rows for rows in range(int(tokens**0.5), 0, -1) if tokens % rows == 0)
    return GRIDS.get(tokens, (rows, tokens // rows))


def shown(zoo: Method, tokens: int, images: int = 1) -> dict[str, Any]:
    """What `Method.reduce` is given: CLS and the tokens, and all that a part may ask for."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, *shape, generator=generator)

    n = 1 + tokens
    both = normal(n, 3, HEADS, WIDTH)  # views of one tensor, as in a model
    query, key, value = both.permute(2, 0, 3, 1, 4)
    given = {
        "keys": key,
        "queries": query,
        "values": value,
        "last_attention": normal(HEADS, n).softmax(-1),
        "text_attention": normal(HEADS, TEXT, n).softmax(-1),
        "text_rotation": normal(TEXT, n),
        "text": normal(TEXT, CHANNELS),
        "grid": grid_of(tokens),
        "depth": 0.25,
        "frames": next(f for f in (8, 6, 4, 1) if tokens % f == 0),
    }
    x = normal(n, CHANNELS)
    text = {"x": normal(TEXT, CHANNELS), "keys": normal(HEADS, TEXT, WIDTH)}
    layers = {need.partition("@")[2] for need in zoo.recipe.needs} - {""}
    at: dict[int | str, Any] = {
        int(layer) if layer.lstrip("-").isdigit() else layer: {"x": x, **given} for layer in layers
    }
    if "text" in at:
        at["text"] = text
    return {"x": x, "prefix": 1, "at": at, **given}


def operations(zoo: Method, given: dict[str, Any]) -> int:
    """How many operations a reduction asks for."""
    with Operations() as seen:
        zoo.reduce(**given)
    return seen.count


def loops(name: str, tokens: int, keep: int) -> dict[str, Any]:
    """Operations of a recipe, and how their number grows with the tokens kept and with the images."""
    zoo = one_step(name, tokens, keep)
    kept = zoo.recipe.wanted(tokens)
    # Neither is the fewest that can stay: there a site may leave out a part of its work.
    some, more = (one_step(name, tokens, kept + tokens * step // 8) for step in (1, 2))
    count = operations(zoo, shown(zoo, tokens))
    growth = operations(more, shown(more, tokens)) - operations(some, shown(some, tokens))
    return {
        "operations": count,
        "per token kept": growth / (tokens // 8),
        "per image": operations(zoo, shown(zoo, tokens, 2)) - count,
    }


def rows(given: argparse.Namespace, tokens: int) -> list[dict[str, Any]]:
    """One row per recipe, for so many tokens."""
    keep = tokens // 5
    zoos = {name: one_step(name, tokens, keep) for name in given.recipes}
    block = Block(CHANNELS, HEADS, MLP, qkv_bias=True).eval()
    run = partial(block, torch.randn(1, 1 + tokens, CHANNELS))
    functions: dict[str, Callable[[], object]] = {BLOCK: run}
    functions |= {name: partial(zoo.reduce, **shown(zoo, tokens)) for name, zoo in zoos.items()}
    timings = interleaved({**functions, AGAIN: run}, rounds=given.rounds, baseline=BLOCK)
    found = [
        {
            "recipe": name,
            "tokens": tokens,
            "keep": zoo.recipe.wanted(tokens),
            "steps": len(tokenzoo.build(name).recipe.steps),
            "median": timings[name].ratio,
            "quartiles": [timings[name].low, timings[name].high],
            **loops(name, tokens, keep),
        }
        for name, zoo in zoos.items()
    ]
    noise = timings[AGAIN]
    again = {"recipe": AGAIN, "tokens": tokens, "median": noise.ratio}
    return [*found, {**again, "quartiles": [noise.low, noise.high]}]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=tokenzoo.list_recipes())
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 2880])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/selection-time-cpu.json"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    with torch.inference_mode():
        found = [row for tokens in given.tokens for row in rows(given, tokens)]
    content = {
        **provenance("benchmarks/selection_time.py", arguments),
        "threads": given.threads,
        "rows": found,
    }
    given.out.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + "\n")
    print(table(content))


def table(content: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [
        "| recipe | tokens | kept | time of a block | operations | per token kept | per image |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        low, high = row["quartiles"]
        cells = [row["recipe"], row["tokens"], row.get("keep", "")]
        cells += [f"{row['median']:.2f} ({low:.2f} to {high:.2f})", row.get("operations", "")]
        cells += [
            f"{row[name]:.1f}" if name in row else "" for name in ("per token kept", "per image")
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
