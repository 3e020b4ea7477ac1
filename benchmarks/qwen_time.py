"""A photograph and a video through Qwen2.5-VL: time of encoder, prefill, and to the first token, as ratios.

    python benchmarks/qwen_time.py                             # -> docs/results/qwen-time-cpu.json
    python benchmarks/qwen_time.py --device cuda --dtype bfloat16 --shape 7b --frames 64 --out FILE

As benchmarks/llava_time.py, which says what is measured and how; here the encoder is both calls,
get_image_features and get_video_features: the tower with its windows, and the merger. Floors are those of
the plan; in blocks with windows a window is taken to lose as large a share of its tokens as the image.

The prompt has one photograph of 784 x 1036 pixels (1,036 tokens) and a video of frames of 336 x 448 pixels,
two of which make one slice in time (192 tokens). `keep` counts tokens of the photograph, and of each slice.
The shape "0.5b" has half of the public tower's 32 blocks, every eighth with full attention as there: with
all of them two cores would take minutes a call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from llava_time import (
    BARE,
    PARTS,
    Watched,
    circumstances,
    decoder,
    figures,
    interleaved,
    options,
    qwen,
    timed,
    watched,
    write,
)
from tokenzoo_adapters.hf_flow import visual_budget
from tokenzoo_adapters.sizes import mlp_width

from tokenzoo.budget import Budget

ENCODERS = ("get_image_features", "get_video_features")
TOKENS = {"image_token_id": 151655, "video_token_id": 151656}
IMAGE, SLICE = (56, 74), (24, 32)  # rows and columns of patches


def tower(
    blocks: int, width: int, mlp: int, heads: int, out: int, every: int = 8
) -> dict[str, Any]:
    """A vision tower, as its configuration says it; some blocks attend to the whole image."""
    return {
        "depth": blocks,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_heads": heads,
        "out_hidden_size": out,
        "fullatt_block_indexes": list(range(every - 1, blocks, every)),
        "window_size": 112,
        "patch_size": 14,
    }


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "0.5b": (
        tower(16, 1280, 3420, 16, 896),
        qwen(896, 4864, 24, 14, kv=2, words=152000, tied=True),
    ),
    "7b": (
        tower(32, 1280, 3420, 16, 3584),
        qwen(3584, 18944, 28, 28, kv=4, words=152064, tied=False),
    ),
    "tiny": (tower(4, 64, 96, 4, 64, every=2), qwen(64, 96, 3, 4, kv=2, words=151660, tied=False)),
}
"""Tower and language model; "tiny" is for tests."""


def make(shape: str, device: str, dtype: torch.dtype, attention: str) -> Any:
    """A Qwen2.5-VL of random weights, made where it is to run."""
    vision, text = SHAPES[shape]
    pairs = text["hidden_size"] // text["num_attention_heads"] // 2
    axes = [pairs // 4, (pairs - pairs // 4) // 2]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [*axes, pairs - sum(axes)]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**text, "rope_parameters": rope, "max_position_embeddings": 32768},
        tie_word_embeddings=text["tie_word_embeddings"],
        vision_start_token_id=5,
        vision_end_token_id=6,
        **TOKENS,
    )
    torch.manual_seed(0)
    with torch.device(device):
        kind: Any = transformers.AutoModelForImageTextToText
        model = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def asked(
    model: Any, frames: int, image: tuple[int, int] = IMAGE, part: tuple[int, int] = SLICE
) -> dict[str, Any]:
    """A prompt of words, a photograph and a video of random pixels, as a processor would write it."""
    generator = torch.Generator().manual_seed(0)
    grids = {"image": (1, *image), "video": ((frames + 1) // 2, *part)}
    given: dict[str, Any] = {}
    words = torch.randint(7, 1000, (1, 32), generator=generator)
    ids, types = [words[:, :12]], [torch.zeros(1, 12, dtype=torch.int64)]
    suffixes = {"image": "", "video": "_videos"}
    for number, (kind, (t, h, w)) in enumerate(grids.items()):
        pixels = torch.randn(t * h * w, 3 * 2 * 14 * 14, generator=generator)
        given[f"pixel_values{suffixes[kind]}"] = pixels.to(model.device, model.dtype)
        given[f"{kind}_grid_thw"] = torch.tensor([[t, h, w]], device=model.device)
        count, more = t * h * w // 4, words[:, 12 + 10 * number :][:, :10]
        ids += [torch.full((1, count), TOKENS[f"{kind}_token_id"]), more]
        types += [torch.full((1, count), number + 1), torch.zeros_like(more)]
    given["input_ids"] = torch.cat(ids, 1).to(model.device)
    given["mm_token_type_ids"] = torch.cat(types, 1).to(model.device)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    return given


def operations(one: Watched, given: dict[str, Any]) -> dict[str, float]:
    """What the plan of a model costs: the tower's blocks, and the language model on the prompt."""
    config = one.model.config
    grids = [given[f"{kind}_grid_thw"].tolist()[0] for kind in ("image", "video")]
    encoder = sum(t * _encoded(one, h * w // 4) for t, h, w in grids)
    layers = config.text_config.num_hidden_layers
    prompt = [given["input_ids"].shape[1]] * layers
    if one.attached is not None:
        plan = one.attached.plan
        visuals = one.attached.adapter.visuals(given, lambda n: plan(n).visual)
        every = [visual for several in visuals.values() for visual in several]
        words = prompt[0] - sum(visual.full for visual in every)
        recipe = one.attached.recipe
        prompt = [words + sum(visual_budget(recipe, i, v) for v in every) for i in range(layers)]
    prefill = decoder(config.text_config, prompt)
    return {"encoder": encoder, "prefill": prefill, "first_token": encoder + prefill}


def _encoded(one: Watched, tokens: int) -> float:
    """The operations of the tower's blocks for an image, or slice, of so many tokens."""
    vision = one.model.model.visual
    depth, window = len(vision.blocks), (112 // 14 // 2) ** 2
    full = vision.config.fullatt_block_indexes
    whole = Budget(
        tokens=tokens,
        entering=tokens,
        blocks=(tokens,) * depth,
        features=tokens,
        width=vision.config.hidden_size,
        hidden=mlp_width(vision.blocks[0].mlp, vision.config.hidden_size),
        patches=4,
        reach=tuple(0 if i in full else window for i in range(depth)),
    )
    share = 1.0 if one.attached is None else one.attached.plan(tokens).flops
    return whole.operations * share


def measured(
    model: Any, recipes: Sequence[str], keep: int | float, frames: int, rounds: int
) -> dict[str, Any]:
    """The table: a row per recipe, and what the noise is."""
    given = asked(model, frames)
    models = {
        name: watched(model, name if name in recipes else None, keep, ENCODERS)
        for name in interleaved(recipes)
    }
    times = timed(models, given, asked(model, 2, (8, 8), (8, 8)), rounds)
    bare = operations(models[BARE], given)
    rows: list[dict[str, Any]] = []
    for name, one in models.items():
        own, on = operations(one, given), one.attached
        counts = [height * width // 4 for height, width in (IMAGE, SLICE)]
        rows.append(
            {
                "recipe": name,
                "tokens_of_image_and_slice": [
                    n if on is None else on.plan(n).visual for n in counts
                ],
                "prompt": one.prompt,
                "floor": {part: own[part] / bare[part] for part in PARTS},
                "time": {part: figures(times[name][part]) for part in PARTS},
            }
        )
    shares = {part: times["shares"][part].ratio for part in PARTS}
    return {"shares_of_the_bare_models_time": shares, "rounds": rounds, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__ or "", SHAPES, "docs/results/qwen-time-cpu.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    model = make(given.shape, given.device, getattr(torch, given.dtype), given.attention)
    said = sys.argv if arguments is None else ["benchmarks/qwen_time.py", *arguments]
    content = {
        **circumstances(given, said),
        "patches_of_the_photograph": IMAGE,
        "patches_of_a_slice": SLICE,
        "vision": SHAPES[given.shape][0],
        "text": SHAPES[given.shape][1],
        **measured(model, given.recipe, given.keep, given.frames, given.rounds),
    }
    write(given.out, content)


if __name__ == "__main__":
    main()
