"""Ten thousand mixed requests: counts are right, and nothing grows.

python -m benchmarks.soak --requests 10000 --out docs/results/soak-cpu.json

A tiny Qwen2.5-VL with `evoprune` answers prompts without an image, with one image, with two of different
sizes, and with a video, some in a batch with padding, some by `generate`. Each answer has as many positions
as the plan says. After each tenth of the requests the process is asked for its memory, tensors, hooks and
compiled frames. Then two models answer in two threads, and at last both are dropped: they must be gone.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import threading
import weakref
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokenzoo
from benchmarks.recorded import show
from tokenzoo.tools.benchmark.shapes import load
from tokenzoo.tools.benchmark.workload import Sizes

MODEL = "qwen2.5-vl-0.5b"
KEEP = 0.5
SIDES = (4, 6, 8, 10)  # patches along the sides of an image, two of which are one side of a token
KINDS = ("text", "image", "two images", "video", "batch", "answer")


def request(model: Any, kind: str, rng: random.Random) -> tuple[dict[str, Tensor], list[list[int]]]:
    """One request of a kind.

    Returns:
        Arguments of the model, and of each prompt the tokens of its images and slices.
    """
    prompts: list[list[tuple[str, tuple[int, int, int]]]]
    image = lambda: ("image", (1, rng.choice(SIDES), rng.choice(SIDES)))  # noqa: E731
    if kind == "text":
        prompts = [[]]
    elif kind == "two images":
        prompts = [[image(), image()]]
    elif kind == "video":
        prompts = [[("video", (rng.randint(1, 3), rng.choice(SIDES), rng.choice(SIDES)))]]
    elif kind == "batch":
        prompts = [[image()], [], [image(), image()]]
    else:
        prompts = [[image()]]
    return inputs(model, prompts, rng), [
        [h * w // 4 for _, (t, h, w) in shown for _ in range(t)] for shown in prompts
    ]


def inputs(
    model: Any, prompts: list[list[tuple[str, tuple[int, int, int]]]], rng: random.Random
) -> Any:
    """Arguments of the model for prompts with images and videos, padded on the left."""
    config = model.config
    rows, grids = list[list[int]](), dict[str, list[tuple[int, int, int]]]()
    for shown in prompts:
        row = [rng.randint(7, 900) for _ in range(rng.randint(3, 9))]
        for kind, grid in shown:
            grids.setdefault(kind, []).append(grid)
            token = getattr(config, f"{kind}_token_id")
            row += [config.vision_start_token_id, *[token] * (grid[0] * grid[1] * grid[2] // 4)]
            row += [config.vision_end_token_id, rng.randint(7, 900)]
        rows.append(row)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    types = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
    given["mm_token_type_ids"] = types
    patch = config.vision_config.patch_size
    for kind, found in grids.items():
        suffix = "" if kind == "image" else "_videos"
        count = sum(t * h * w for t, h, w in found)
        given[f"pixel_values{suffix}"] = torch.randn(count, 6 * patch * patch)
        given[f"{kind}_grid_thw"] = torch.tensor(found)
    return given


def answer(attached: Any, kind: str, rng: random.Random) -> None:
    """Send one request, and compare the positions of the answer with the plan.

    Raises:
        RuntimeError: the model has not read as many tokens as the plan says.
    """
    model = attached.model
    given, tokens = request(model, kind, rng)
    lengths = given["attention_mask"].sum(1).tolist()
    short = [
        length - sum(n - attached.visual_tokens(n) for n in shown)
        for length, shown in zip(lengths, tokens, strict=True)
    ]
    if kind == "answer":
        made = model.generate(**given, max_new_tokens=2, do_sample=False)
        found, expected = made.shape[1], lengths[0] + 2  # prompts come back whole
    else:
        found, expected = model(**given).logits.shape[1], max(short)
    if found != expected:
        raise RuntimeError(f"{kind} of {tokens} tokens: {found} positions, and {expected} planned")


def state(model: Any) -> dict[str, int]:
    """What must not grow."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    tensors = sum(isinstance(one, Tensor) for one in gc.get_objects())
    dynamo = sys.modules.get("torch._dynamo.utils")
    compiled = 0 if dynamo is None else sum(dynamo.counters["frames"].values())
    return {
        "memory_mb": pages * 4096 // 2**20,
        "tensors": tensors,
        "hooks": hooks,
        "compiled": compiled,
    }


def soak(requests: int, seed: int = 0) -> dict[str, Any]:
    """Run everything; see the head of this file.

    Raises:
        RuntimeError: a count is wrong, or a model is not freed.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    attached = tokenzoo.build("evoprune", keep=KEEP).attach(load(MODEL, Sizes(tiny=True)).model)
    counts, states = Counter[str](), list[dict[str, int]]()
    for number in range(requests):
        kind = rng.choice(KINDS)
        with torch.inference_mode():
            answer(attached, kind, rng)
        counts[kind] += 1
        if (number + 1) % max(requests // 10, 1) == 0:
            states.append({"requests": number + 1, **state(attached.model)})
    other = tokenzoo.build("tome", keep=KEEP).attach(load(MODEL, Sizes(tiny=True)).model)
    in_threads([attached, other], max(requests // 20, 1))
    gone = [weakref.ref(one.model) for one in (attached, other)]
    del attached, other
    gc.collect()
    if any(model() is not None for model in gone):
        raise RuntimeError("a model that was dropped with a recipe on it is still there")
    return {"requests": dict(counts), "states": states, "freed": True}


def in_threads(several: list[Any], requests: int) -> None:
    """Let each model answer in a thread of its own, at the same time.

    Raises:
        RuntimeError: what a thread has raised.
    """
    errors: list[BaseException] = []

    def work(attached: Any, seed: int) -> None:
        rng = random.Random(seed)
        try:
            with torch.inference_mode():
                for _ in range(requests):
                    answer(attached, rng.choice(KINDS), rng)
        except BaseException as error:  # of another thread: it is raised in this one
            errors.append(error)

    threads = [threading.Thread(target=work, args=(one, i)) for i, one in enumerate(several)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError("a thread has failed") from errors[0]


def main() -> None:
    """Run it, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "command": f"python -m benchmarks.soak --requests {given.requests}",
        "model": f"{MODEL}, tiny",
        "recipe": f"evoprune(keep={KEEP})",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        **soak(given.requests),
    }
    show(found, given.out)


if __name__ == "__main__":
    main()
