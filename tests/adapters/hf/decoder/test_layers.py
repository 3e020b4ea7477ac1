"""Fewer visual tokens from a layer of the language model on, against the bare model with masks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import (
    CACHE,
    FLOWER,
    KINDS,
    ONE,
    PADDED,
    SINGLE,
    SMALL,
    TEMPLE,
    WIDE,
    Batch,
    answer,
    cache_of,
    entering,
    logits,
    real_gap,
    whole,
)
from tests.adapters.models import gap
from tokenzoo import Recipe, Stage, Step
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm, LastTokenAttention

EACH = pytest.mark.parametrize("kind", KINDS)
RECIPES = ("fastv", "dart", "two layers", "compact", "two compact", "compact pyramid", "raters")
OTHERS = [kind for kind in KINDS if kind != "llava"]
# What keeps rows apart is the same for all kinds.
EVERY = pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("llava", name) for name in (*RECIPES, "merging")),
        *((kind, name) for kind in OTHERS for name in ("two compact", "merging")),
    ],
)

# Two rows with one image each, left-padded: their text is of different lengths.
PAIR = Batch((ONE, "what is <image> ?"), ((TEMPLE,), (FLOWER,)))
# One, two and no images: every row is cut in a way of its own.
RAGGED = Batch((ONE, "<image> and <image> ?", "is the sky blue ?"), ((WIDE,), (FLOWER, SMALL), ()))


@cache
def eager(kind: str) -> Any:
    """The model of that name, which shows its attention maps; the tests leave it bare."""
    makes = {**KINDS, "qwen2_vl": qwen.qwen2_vl, "qwen2_5_vl": qwen.qwen2_5_vl}
    model = makes[kind]()
    model.set_attn_implementation("eager")
    return model


def step(layer: int, keep: float = 1.0, *, attended: bool = True, compact: bool = False) -> Step:
    """Keep what is attended to, or the largest keys, before one layer."""
    scorer = LastTokenAttention() if attended else FeatureNorm("all_keys")
    match = SelectAssign(TopK(scorer), Drop())
    how = "compact" if compact else "keep"
    return Step(Stage.LLM(layer), Once(keep=keep), match, Identity(), positions=how)


TWO = {"layers": (1, 3), "factors": (2.0, 1.0)}
MADE: dict[str, Callable[[], Any]] = {
    "two layers": lambda: Recipe(step(1, 2.0), step(3, attended=False), keep=13),
    "compact": lambda: Recipe(step(2, compact=True), keep=13),
    "two compact": lambda: Recipe(step(1, 2.0, compact=True), step(3, compact=True), keep=13),
    "compact pyramid": lambda: tokenzoo.build("pyramiddrop", keep=13, layers=(1, 2, 3)),
    "raters": lambda: tokenzoo.build("sparsevlm", keep=13, version="2", heads=2, **TWO),
    "merging": lambda: tokenzoo.build("sparsevlm", keep=13, dominant=0.75, **TWO),
}


def recipe(name: str) -> Any:
    made = MADE[name]() if name in MADE else tokenzoo.build(name, keep=13)
    return tokenzoo.build(made) if isinstance(made, Recipe) else made


class Told:
    """Which columns of the prompt each layer does not see, from the plans that are told."""

    def __init__(self, given: Any) -> None:
        self.ids = given["input_ids"]
        places = [(row == hf.IMAGE).nonzero()[:, 0] for row in self.ids]
        self.left: list[list[Tensor]] = [[row] for row in places]
        self.gone: dict[int, Tensor] = {}

    def __call__(self, event: Any) -> None:
        """Record rows of equal length and equal numbers of visual tokens at once, in order."""
        assert event.stage == "llm"
        gone = self.gone.setdefault(event.block, torch.zeros(self.ids.shape, dtype=torch.bool))
        size = event.before.x.shape[1]
        rows = [
            r for r, left in enumerate(self.left) if len(left[-1]) == size and not gone[r].any()
        ]
        rows = [r for r in rows if self.left[r][0][-1] == self.left[rows[0]][0][-1]]
        assert len(rows) == len(event.plan.keep)
        for r, keep in zip(rows, event.plan.keep, strict=True):
            left = self.left[r][-1]
            self.left[r].append(left[keep.sort().values])
            every = torch.zeros(self.ids.shape[1], dtype=torch.bool)
            every[self.left[r][0]] = True
            every[self.left[r][-1]] = False
            gone[r] = every

    def at(self, layer: int, columns: int) -> Tensor:
        """Columns `[b, columns]` that a layer does not see."""
        gone = torch.zeros(len(self.ids), columns, dtype=torch.bool)
        for first in sorted(self.gone):
            if first <= layer:
                gone[:, : self.ids.shape[1]] |= self.gone[first]
        return gone


@contextmanager
def masked(model: Any, told: Told, real: Tensor, *, compact: bool) -> Generator[None]:
    """The bare model, whose layers do not see what was dropped: 4-D masks made here from nothing.

    Args:
        model: the bare model.
        told: what was dropped.
        real: `[b, k]`, 0 at padding, of all columns until now.
        compact: whether layers that miss tokens see positions without gaps.
    """
    language = model.model.language_model

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], layer: int) -> Any:
        x, k = args[0], real.shape[1]
        q = x.shape[1]
        seen = real.bool() & ~told.at(layer, k)  # [b, k]
        allowed = torch.ones(q, k, dtype=torch.bool).tril(k - q) & seen[:, None, None]
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(x.dtype).min)
        kwargs = {**kwargs, "attention_mask": mask}  # [b, 1, q, k]
        if compact:
            positions = (seen.long().cumsum(-1) - 1).clamp_min(0)[:, -q:]
            kwargs["position_embeddings"] = language.rotary_emb(x, positions)
        return args, kwargs

    with ExitStack() as handles:
        for i, layer in enumerate(language.layers):
            handle = layer.register_forward_pre_hook(partial(hook, layer=i), with_kwargs=True)
            handles.callback(handle.remove)
        yield


def steps_of(
    model: Any, given: Any, words: Sequence[Tensor], around: Callable[[Tensor], Any] = nullcontext
) -> list[Tensor]:
    """Logits of the prompt, and of each word decoded after it with the cache.

    Args:
        model: the model.
        given: the prompts.
        words: each `[b, 1]`.
        around: from a call's mask, the context in which it is made.
    """
    real = given["attention_mask"]
    positions = (real.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad(), around(real):
        out = model(**given, position_ids=positions, use_cache=True)
    found = [out.logits]
    for word in words:
        real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
        positions = positions[:, -1:] + 1
        say = {"attention_mask": real, "position_ids": positions, CACHE: cache_of(out)}
        with torch.no_grad(), around(real):
            out = model(input_ids=word, **say, use_cache=True)
        found.append(out.logits)
    return found


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("kind", "batch"),
    [("llava", PAIR), *((kind, RAGGED) for kind in KINDS)],
    ids=["pair", *KINDS],
)
def test_it_is_the_bare_model_that_does_not_see_what_was_dropped(
    kind: str, base: str, batch: Batch, name: str
) -> None:
    model = whole(kind) if base == "sdpa" else eager(kind)
    given = batch.given(model)
    real = given["attention_mask"]
    words = [torch.randint(len(hf.SPECIAL), len(hf.WORDS), (len(real), 1)) for _ in range(3)]
    told = Told(given)
    with recipe(name).attach(model, on_reduce=told):
        ours = steps_of(model, given, words)
    last = max(told.gone)
    assert last < 4
    without = partial(masked, model, told, compact="compact" in name)
    bare = steps_of(model, given, words, without)
    gone = told.at(last, real.shape[1])
    assert bool((gone & real.bool()).any())
    assert real_gap(ours[0], bare[0], real.bool() & ~gone) <= 1e-4
    for mine, theirs in zip(ours[1:], bare[1:], strict=True):
        assert gap(mine, theirs) <= 1e-4
    # The reference is sharp: without its masks it is another model.
    reduced = gone.any(1)
    assert gap(steps_of(model, given, words)[-1][reduced], ours[-1][reduced]) > 1e-2


# Of an image of five crops, 13 tokens each, and what belongs to none of them: newlines, and the remainder.
LEFT = {"llava": 13, "llava_next": 5 * 13 + 10 + 4, "llava_onevision": 5 * 13 + 8 + 1}


@EACH
def test_fastv_keeps_what_the_last_token_attends_to(kind: str) -> None:
    """Its choice, found from the attention maps of the bare model."""
    model = eager(kind)
    given = PAIR.given(model)
    ids = given["input_ids"]
    positions = (given["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        maps = model(**given, position_ids=positions, output_attentions=True).attentions
    for layer in (1, 2, 3):
        told = Told(given)
        with tokenzoo.build("fastv", keep=13, layer=layer).attach(model, on_reduce=told):
            logits(model, given)
        for r in range(len(ids)):
            places = (ids[r] == hf.IMAGE).nonzero()[:, 0]
            paid = maps[layer - 1][r, :, -1].mean(0)[places]
            best = places[paid.topk(LEFT[kind]).indices].sort().values
            assert torch.equal(told.left[r][-1], best)


def test_as_many_tokens_as_planned_enter_each_layer() -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    n = given["input_ids"].shape[1]
    wanted = [n, n - 64 + 26, n - 64 + 26, n - 64 + 13]
    lengths: list[int] = []
    with recipe("two layers").attach(model) as attached, ExitStack() as handles:
        for layer in model.model.language_model.layers:
            handle = layer.register_forward_hook(lambda m, a, out: lengths.append(out.shape[1]))
            handles.callback(handle.remove)
        assert logits(model, given).shape[1] == n
        assert lengths == wanted
        assert (attached.plan().llm, attached.plan().visual) == (13, 64)
        cache = cache_of(model(**given, use_cache=True))
        assert [cache.get_seq_length(layer) for layer in range(4)] == wanted


@EVERY
def test_with_and_without_a_cache_in_every_way(kind: str, name: str) -> None:
    """Rows with other images, other text and padding are what they are alone."""
    model = whole(kind)
    given = PADDED.given(model)
    with recipe(name).attach(model):
        said = answer(model, given)
        assert torch.equal(answer(model, given, use_cache=False), said)
        alone = [answer(model, row) for row in PADDED.rows(model)]
        assert torch.equal(torch.cat(alone), said)
        beams = answer(model, given, num_beams=3)
        assert torch.equal(answer(model, given, num_beams=3, use_cache=False), beams)
        if kind == "llava":
            alone = [answer(model, row, num_beams=3) for row in PADDED.rows(model)]
            assert torch.equal(torch.cat(alone), beams)


def test_dropped_tokens_come_back_as_they_were() -> None:
    """After the last layer they have the features with which they entered the layer that dropped them."""
    model = whole("llava")
    given = SINGLE.given(model)
    with torch.no_grad():
        states = model(**given, output_hidden_states=True).hidden_states
    told = Told(given)
    with recipe("fastv").attach(model, on_reduce=told):
        out = logits(model, given)
    gone = told.at(2, out.shape[1])
    language = model.model.language_model
    with torch.no_grad():
        expected = model.lm_head(language.norm(states[2]))
    assert int(gone.sum()) == 64 - 13
    assert gap(out[gone], expected[gone]) <= 1e-4


def test_frames_and_images_each_keep_their_share() -> None:
    model = whole("llava_onevision")
    given = hf.inputs(model, "<image> and <video> ?", [[TEMPLE]], [hf.video(3)])
    ids = given["input_ids"][0]
    places = ((ids == hf.IMAGE) | (ids == hf.VIDEO)).nonzero()[:, 0]
    told: list[Any] = []
    zoo = tokenzoo.build("fastv", keep=0.25)
    with zoo.attach(model, on_reduce=told.append), entering(model) as calls:
        logits(model, given)
        assert calls[0]["inputs_embeds"].shape[1] == len(ids)
        (event,) = told
        before, after = event.before.x.shape[1], event.after.x.shape[1]
        assert before == len(places)
        # A quarter of what belongs to a crop or a frame; newlines are counted as kept.
        assert before / 4 <= after < before / 4 + 20
        said = answer(model, given)
        assert torch.equal(answer(model, given, use_cache=False), said)


def test_text_alone_is_left_alone() -> None:
    model = whole("llava")
    given = hf.inputs(model, ["is the sky blue ?", "what ?"])
    bare, said = logits(model, given), answer(model, given)
    for name in RECIPES:
        with recipe(name).attach(model):
            assert torch.equal(logits(model, given), bare)
            assert torch.equal(answer(model, given), said)


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_carried_along(kind: str, side: str, name: str) -> None:
    """From the step on a batch is as long as the longest of its rows is then."""
    model = whole(kind)
    given = PADDED.given(model, side)
    with recipe(name).attach(model), torch.no_grad():
        alone = [
            cache_of(model(**row, use_cache=True)).get_seq_length(3) for row in PADDED.rows(model)
        ]
        cache = cache_of(model(**given, use_cache=True))
        assert cache.get_seq_length(3) == max(alone)
        assert cache.get_seq_length(0) == given["input_ids"].shape[1]


@pytest.mark.parametrize("layers", [(2,), (1, 3)])
@pytest.mark.parametrize("keep", [13, 1])
def test_a_prompt_that_ends_with_an_image(layers: tuple[int, ...], keep: int) -> None:
    """Its last token is a visual one, from which the answer is read: it stays, and is counted."""
    model = whole("llava")
    given = hf.inputs(model, ["what is this <image>", "the <image> is"], [[TEMPLE], [TEMPLE]])
    steps = [step(k, compact=True) for k in layers]
    alone = hf.inputs(model, ["what is this <image>"], [[TEMPLE]])
    with tokenzoo.build(Recipe(*steps, keep=keep)).attach(model) as attached, torch.no_grad():
        out = model(**given).logits
        assert attached.prompts == (keep, keep)
        single = model(**alone).logits
        assert attached.prompts == (keep,)
        assert float((out[0, -1] - single[0, -1]).abs().max()) <= 1e-4
        assert torch.equal(answer(model, alone), answer(model, alone, use_cache=False))
