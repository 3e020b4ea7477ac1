"""A video through LLaVA-OneVision: time of the encoder, of the prefill, and to the first token, as ratios.

    python benchmarks/llava_time.py                             # -> docs/results/llava-time-cpu.json
    python benchmarks/llava_time.py --device cuda --dtype bfloat16 --shape 7b --frames 64 --out FILE

The models have the shapes of the public checkpoints and random weights: times do not depend on these. All
share one set of weights; the bare one has nothing attached to it. In each round every model is asked once
for one token (`generate`), in another order than before; a clock within that call stops its parts:

    encoder        get_video_features: tower, projector, and the bare model's pooling
    prefill        the language model over the prompt
    first_token    all of it, the shortening of the prompt included

Each time is divided by the bare model's in the same round; "bare model again" is the noise. Floors are
ratios of the operations that are planned: matrix products of the tower's blocks, and of the language
model's layers and its head (`tokenzoo.budget.block_flops`; attention is counted whole, as if it were not
causal). `random` has evoprune's schedule and looks at nothing: what evoprune takes longer is what its
scoring and its merging cost. `uniform` drops all at once, after a third of the blocks.

`keep` counts patch tokens of a frame (729). The bare model pools them to 196 behind the encoder, a reduced
frame is not pooled again: a quarter, 182, is a prompt hardly shorter than the bare model's.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial, wraps
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from collage_runs import rounded
from tokenzoo_adapters.hf_flow import visual_budget

import tokenzoo
from tokenzoo.budget import block_flops
from tokenzoo.measure import Timing, turn

BARE, AGAIN = "bare model", "bare model again"
PARTS = ("encoder", "prefill", "first_token")
ENCODERS = ("get_video_features",)
TOKENS = {"image_token_id": 151646, "video_token_id": 151647}


def sizes(width: int, mlp: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    """A part of a model, as its configuration says it."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {**dict(zip(names, (width, mlp, layers, heads), strict=True)), **others}


def qwen(*given: int, kv: int, words: int, tied: bool) -> dict[str, Any]:
    """As `sizes`, for a language model."""
    return sizes(*given, num_key_value_heads=kv, vocab_size=words, tie_word_embeddings=tied)


SO400M = sizes(1152, 4304, 26, 16, image_size=384, patch_size=14)
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "0.5b": (SO400M, qwen(896, 4864, 24, 14, kv=2, words=152000, tied=True)),
    "7b": (SO400M, qwen(3584, 18944, 28, 28, kv=4, words=152128, tied=False)),
    "tiny": (
        sizes(64, 96, 6, 4, image_size=126, patch_size=14),
        qwen(64, 96, 3, 4, kv=2, words=151650, tied=False),
    ),
}
"""Tower and language model: SigLIP so400m/14-384 and Qwen2-0.5B or -7B; "tiny" is for tests."""


def make(shape: str, device: str, dtype: torch.dtype, attention: str) -> Any:
    """A LLaVA-OneVision of random weights, made where it is to run."""
    vision, text = SHAPES[shape]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=transformers.Qwen2Config(**text, max_position_embeddings=32768),
        tie_word_embeddings=text["tie_word_embeddings"],
        **TOKENS,
    )
    torch.manual_seed(0)
    with torch.device(device):
        kind: Any = transformers.AutoModelForImageTextToText
        model = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def asked(model: Any, frames: int) -> dict[str, Any]:
    """A prompt of 12 words, a video of random pixels and 20 words, as a processor would write it."""
    vision = model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    shape = (1, frames, 3, vision.image_size, vision.image_size)
    pixels = torch.randn(shape, generator=generator).to(model.device, model.dtype)
    side = (vision.image_size // vision.patch_size + 1) // 2  # behind the bare model's pooling
    words = torch.randint(5, 1000, (1, 32), generator=generator)
    video = torch.full((1, frames * side * side + 1), TOKENS["video_token_id"])
    ids = torch.cat([words[:, :12], video, words[:, 12:]], 1).to(model.device)
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": pixels}


@dataclass
class Watched:
    """A model with a clock at its parts.

    Args:
        model: bare, or with a recipe on it.
        attached: that recipe, or None.
        encoders: names of the functions that encode, each of them called once.
    """

    model: Any
    attached: Any
    encoders: tuple[str, ...] = ENCODERS
    marks: dict[str, list[float]] = field(default_factory=dict)
    prompt: int = 0

    def __post_init__(self) -> None:
        base = self.model.model
        # generate looks at the names of its arguments, which `wraps` hands on.
        for name in self.encoders:
            encode = getattr(base, name)
            setattr(base, name, wraps(encode)(partial(self._encode, encode)))
        base.language_model.register_forward_pre_hook(self._enter, with_kwargs=True)
        base.language_model.register_forward_hook(self._leave)

    def ask(self, given: dict[str, Any]) -> dict[str, float]:
        """Seconds of each part of one call; off this function they are only ever divided."""
        self.marks = {"encoder": [], "prefill": []}
        begin = self._now()
        with torch.inference_mode():
            self.model.generate(**given, max_new_tokens=1, do_sample=False)
        seconds = {"first_token": self._now() - begin}
        for part, calls in (("encoder", len(self.encoders)), ("prefill", 1)):
            marks = self.marks[part]
            if len(marks) != 2 * calls:
                raise RuntimeError(f"{part}: {len(marks)} marks in one call, {2 * calls} expected")
            seconds[part] = sum(marks[1::2]) - sum(marks[::2])
        return seconds

    def _encode(self, encode: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.marks["encoder"].append(self._now())
        features = encode(*args, **options)
        self.marks["encoder"].append(self._now())
        return features

    def _enter(self, module: Any, args: Any, options: dict[str, Any]) -> None:
        self.prompt = options["inputs_embeds"].shape[1]
        self.marks["prefill"].append(self._now())

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        self.marks["prefill"].append(self._now())

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()


def watched(
    model: Any, recipe: str | None, keep: int | float, encoders: tuple[str, ...] = ENCODERS
) -> Watched:
    """The same weights in a model of its own, with a recipe or without."""
    copy = deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    attached = None if recipe is None else tokenzoo.build(recipe, keep=keep).attach(copy)
    return Watched(copy, attached, encoders)


def operations(one: Watched, given: dict[str, Any]) -> dict[str, int]:
    """What the plan of a model costs: the tower's blocks, and the language model on the prompt."""
    vision, text = one.model.config.vision_config, one.model.config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    frames = given["pixel_values_videos"].shape[1]
    block = block_flops(patches, patches, vision.hidden_size, vision.intermediate_size)
    encoder, layers = frames * vision.num_hidden_layers * block, text.num_hidden_layers
    prompt = [given["input_ids"].shape[1]] * layers
    if one.attached is not None:
        plan = one.attached.plan
        encoder = round(encoder * plan().flops)
        ((token, (video,)),) = one.attached.adapter.visuals(given, lambda n: plan(n).visual).items()
        words = int((given["input_ids"] != token).sum())
        prompt = [words + visual_budget(one.attached.recipe, i, video) for i in range(layers)]
    prefill = decoder(text, prompt)
    return {"encoder": encoder, "prefill": prefill, "first_token": encoder + prefill}


def decoder(text: Any, prompt: Sequence[int]) -> int:
    """What a language model costs, when so many tokens enter each of its layers."""
    width, head = text.hidden_size, text.hidden_size // text.num_attention_heads
    pairs = 4 * width**2 + 4 * width * head * text.num_key_value_heads  # q and out, k and v
    pairs += 6 * width * text.intermediate_size  # three matrices
    return sum(n * pairs + 4 * n * n * width for n in prompt) + 2 * width * text.vocab_size


def timed(
    models: dict[str, Watched], given: dict[str, Any], warmup: dict[str, Any], rounds: int
) -> dict[str, dict[str, Timing]]:
    """The time of each part, by model, relative to the bare model's in the same round."""
    for one in models.values():
        one.ask(warmup)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for index in range(rounds):
        for name in turn(list(models), index):
            seconds[name].append(models[name].ask(given))
        print(f"round {index + 1} of {rounds}", file=sys.stderr, flush=True)
    bare = seconds[BARE]
    # How much of its time to the first token each part is: of the bare model alone.
    whole = [dict.fromkeys(PARTS, one["first_token"]) for one in bare]
    times = {name: _ratios(own, bare) for name, own in seconds.items()}
    return {**times, "shares": _ratios(bare, whole)}


def interleaved(recipes: Sequence[str]) -> list[str]:
    """The rows: the bare model twice, half a round apart, so as to see how the machine drifts."""
    half = len(recipes) // 2
    return [BARE, *recipes[:half], AGAIN, *recipes[half:]]


def measured(
    model: Any, recipes: Sequence[str], keep: int | float, frames: int, rounds: int
) -> dict[str, Any]:
    """The table: a row per recipe, and what the noise is."""
    given = asked(model, frames)
    names = interleaved(recipes)
    models = {name: watched(model, name if name in recipes else None, keep) for name in names}
    times = timed(models, given, asked(model, 1), rounds)
    bare = operations(models[BARE], given)
    rows: list[dict[str, Any]] = []
    for name, one in models.items():
        own, on = operations(one, given), one.attached
        rows.append(
            {
                "recipe": name,
                "tokens_of_a_frame_behind_the_encoder": None if on is None else on.plan().visual,
                "prompt": one.prompt,
                "floor": {part: own[part] / bare[part] for part in PARTS},
                "time": {part: figures(times[name][part]) for part in PARTS},
            }
        )
    shares = {part: times["shares"][part].ratio for part in PARTS}
    return {"shares_of_the_bare_models_time": shares, "rounds": rounds, "rows": rows}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown: time (floor)."""
    lines = ["| | prompt | encoder | prefill | first token |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{row['time'][p]['median']:.2f} ({row['floor'][p]:.2f})" for p in PARTS]
        lines.append(f"| {row['recipe']} | {row['prompt']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__ or "", SHAPES, "docs/results/llava-time-cpu.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    model = make(given.shape, given.device, getattr(torch, given.dtype), given.attention)
    said = sys.argv if arguments is None else ["benchmarks/llava_time.py", *arguments]
    content = {
        **circumstances(given, said),
        "vision": SHAPES[given.shape][0],
        "text": SHAPES[given.shape][1],
        **measured(model, given.recipe, given.keep, given.frames, given.rounds),
    }
    write(given.out, content)


def options(description: str, shapes: Iterable[str], out: str) -> argparse.ArgumentParser:
    """What a measurement of this kind can be told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", nargs="+", default=["evoprune", "random", "uniform"])
    parser.add_argument("--keep", type=share, default=0.25, help="tokens of a frame, or a share")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--shape", choices=shapes, default="0.5b")
    parser.add_argument("--tiny", action="store_const", const="tiny", dest="shape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--attention", default="sdpa", help="flash_attention_2, eager, ...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def circumstances(given: argparse.Namespace, said: Sequence[str]) -> dict[str, Any]:
    """How a measurement came to be."""
    return {
        "command": shlex.join(["python", *said]),
        "versions": {
            "tokenzoo": tokenzoo.__version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "threads": given.threads,
        "device": "cpu" if given.device == "cpu" else torch.cuda.get_device_name(given.device),
        "dtype": given.dtype,
        "attention": given.attention,
        "frames": given.frames,
        "keep": given.keep,
        "weights": "random",
    }


def write(out: Path, content: dict[str, Any]) -> None:
    """The file, and the table."""
    out.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + "\n")
    print(table(content["rows"]))


def share(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _ratios(own: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, Timing]:
    rounds = list(zip(own, base, strict=True))
    return {part: Timing(tuple(a[part] / b[part] for a, b in rounds)) for part in PARTS}


def figures(timing: Timing) -> dict[str, Any]:
    return {"median": timing.ratio, "quartiles": [timing.low, timing.high]}


if __name__ == "__main__":
    main()
