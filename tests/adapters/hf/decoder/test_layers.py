"""Fewer visual tokens from a layer of the language model on, against the bare model with masks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf
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
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm, LastTokenAttention

EACH = pytest.mark.parametrize("kind", KINDS)
RECIPES = ("fastv", "dart", "two layers", "compact", "two compact", "compact pyramid", "raters")
BASES = pytest.mark.parametrize("base", ["sdpa", "eager"])

# Two rows with one image each, left-padded: their text is of different lengths.
PAIR = Batch((ONE, "what is <image> ?"), ((TEMPLE,), (FLOWER,)))
# One, two and no images: every row is cut in a way of its own.
RAGGED = Batch((ONE, "<image> and <image> ?", "is the sky blue ?"), ((WIDE,), (FLOWER, SMALL), ()))


def step(layer: int, keep: float = 1.0, *, attended: bool = True, compact: bool = False) -> Step:
    """Keep what is attended to, or the largest keys, before one layer."""
    scorer = LastTokenAttention() if attended else FeatureNorm("all_keys")
    match = SelectAssign(TopK(scorer), Drop())
    how = "compact" if compact else "keep"
    return Step(Stage.LLM(layer), Once(keep=keep), match, Identity(), positions=how)


def recipe(name: str, keep: int = 13) -> Any:
    made = {
        "two layers": Recipe(step(1, 2.0), step(3, attended=False), keep=keep),
        "compact": Recipe(step(2, compact=True), keep=keep),
        "two compact": Recipe(step(1, 2.0, compact=True), step(3, compact=True), keep=keep),
    }
    zoo = {
        "compact pyramid": ("pyramiddrop", {"layers": (1, 2, 3)}),
        "raters": (
            "sparsevlm",
            {"version": "2", "layers": (1, 3), "factors": (2.0, 1.0), "heads": 2},
        ),
    }
    if name in zoo:
        method, options = zoo[name]
        return tokenzoo.build(method, keep=keep, **options)
    return tokenzoo.build(made[name]) if name in made else tokenzoo.build(name, keep=keep)


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

    def hook(layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        del module
        x, k = args[0], real.shape[1]
        q = x.shape[1]
        gone = told.at(layer, k)
        seen = real.bool() & ~gone  # [b, k]
        causal = torch.ones(q, k, dtype=torch.bool).tril(k - q)
        allowed = causal & seen[:, None, None]  # [b, 1, q, k]
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(x.dtype).min)
        kwargs = {**kwargs, "attention_mask": mask}
        if compact:
            positions = (seen.long().cumsum(-1) - 1).clamp_min(0)[:, -q:]
            kwargs["position_embeddings"] = language.rotary_emb(x, positions)
        return args, kwargs

    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, i=i: hook(i, module, args, kwargs), with_kwargs=True
        )
        for i, layer in enumerate(language.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def steps_of(model: Any, given: Any, real: Tensor, words: Sequence[Tensor]) -> Generator[Any]:
    """Logits of the prompt, and of each word decoded after it with the cache; also the mask until then."""
    positions = (real.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        out = model(**given, position_ids=positions, use_cache=True)
        yield out.logits, real
        for word in words:
            real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
            positions = positions[:, -1:] + 1
            out = model(
                input_ids=word,
                attention_mask=real,
                position_ids=positions,
                **{CACHE: cache_of(out)},
                use_cache=True,
            )
            yield out.logits, real


def reference(model: Any, given: Any, told: Told, words: Any, *, compact: bool) -> list[Tensor]:
    """The same steps by the bare model with masks."""
    real, found = given["attention_mask"], []
    going = steps_of(model, given, real, words)
    for i in range(len(words) + 1):
        if i:
            real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
        with masked(model, told, real, compact=compact):
            found.append(next(going)[0])
    return found


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("batch", [PAIR, RAGGED], ids=["pair", "ragged"])
@BASES
@EACH
def test_it_is_the_bare_model_that_does_not_see_what_was_dropped(
    kind: str, base: str, batch: Batch, name: str
) -> None:
    model = whole(kind) if base == "sdpa" else _eager(kind)
    given = batch.given(model)
    real = given["attention_mask"]
    words = [torch.randint(len(hf.SPECIAL), len(hf.WORDS), (len(real), 1)) for _ in range(3)]
    told = Told(given)
    with recipe(name).attach(model, on_reduce=told):
        ours = [out for out, _ in steps_of(model, given, real, words)]
    assert max(told.gone) < 4
    bare = reference(model, given, told, words, compact="compact" in name)
    last = max(told.gone)
    there = real.bool() & ~told.at(last, real.shape[1])
    assert int((~there & real.bool()).sum()) > 0
    assert real_gap(ours[0], bare[0], there) <= 1e-4
    for mine, theirs in zip(ours[1:], bare[1:], strict=True):
        assert gap(mine, theirs) <= 1e-4
    # The reference is sharp: without its masks it is another model.
    plain = [out for out, _ in steps_of(model, given, real, words)]
    reduced = torch.tensor([(row == hf.IMAGE).any() for row in given["input_ids"]])
    assert gap(plain[-1][reduced], ours[-1][reduced]) > 1e-2


def _eager(kind: str) -> Any:
    model = KINDS[kind]()
    model.set_attn_implementation("eager")
    return model


# Of an image of five crops, 13 tokens each, and what belongs to none of them: newlines, and the remainder.
LEFT = {"llava": 13, "llava_next": 5 * 13 + 10 + 4, "llava_onevision": 5 * 13 + 8 + 1}


@EACH
def test_fastv_keeps_what_the_last_token_attends_to(kind: str) -> None:
    """Its choice, found from the attention maps of the bare model."""
    model = _eager(kind)
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
    lengths: list[int] = []
    n = given["input_ids"].shape[1]
    with recipe("two layers").attach(model) as attached:
        handles = [
            layer.register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
            for layer in model.model.language_model.layers
        ]
        out = logits(model, given)
        assert lengths == [n, n - 64 + 26, n - 64 + 26, n - 64 + 13]
        assert attached.plan().llm == 13
        assert attached.plan().visual == 64
        assert out.shape[1] == n
        cache = cache_of(model(**given, use_cache=True))
        held = [cache.get_seq_length(layer) for layer in range(4)]
        assert held == [n, n - 64 + 26, n - 64 + 26, n - 64 + 13]
    for handle in handles:
        handle.remove()


@EACH
@pytest.mark.parametrize("name", RECIPES)
def test_with_and_without_a_cache_in_every_way(kind: str, name: str) -> None:
    model = whole(kind)
    given = PADDED.given(model)
    with recipe(name).attach(model):
        said = answer(model, given)
        assert torch.equal(answer(model, given, use_cache=False), said)
        alone = [answer(model, row) for row in PADDED.rows(model)]
        assert torch.equal(torch.cat(alone), said)
        beams = answer(model, given, num_beams=3)
        assert torch.equal(answer(model, given, num_beams=3, use_cache=False), beams)
        if kind == "llava":  # what keeps rows apart is the same for all kinds
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


def test_positions_that_are_kept_and_compact_ones_differ() -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    outs: list[Tensor] = []
    for compact in (False, True):
        made = step(2, compact=compact)
        with tokenzoo.build(Recipe(made, keep=13)).attach(model):
            outs.append(logits(model, given)[:, -1])
    assert gap(outs[0], outs[1]) > 1e-3
    assert replace(made, positions="keep") == step(2)


def test_frames_and_images_each_keep_their_share() -> None:
    model = whole("llava_onevision")
    given = hf.inputs(model, "<image> and <video> ?", [[TEMPLE]], [hf.video(3)])
    ids = given["input_ids"][0]
    places = ((ids == hf.IMAGE) | (ids == hf.VIDEO)).nonzero()[:, 0]
    shapes: list[tuple[int, int]] = []

    def tell(event: Any) -> None:
        shapes.append((event.before.x.shape[1], event.after.x.shape[1]))

    with tokenzoo.build("fastv", keep=0.25).attach(model, on_reduce=tell), entering(model) as calls:
        logits(model, given)
        assert calls[0]["inputs_embeds"].shape[1] == len(ids)
        ((before, after),) = shapes
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


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", RECIPES)
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


@pytest.mark.parametrize("kind", ["one", "two compact"])
@pytest.mark.parametrize("keep", [13, 1])
def test_a_prompt_that_ends_with_an_image(kind: str, keep: int) -> None:
    """Its last token is a visual one, from which the answer is read: it stays, and is counted."""
    model = whole("llava")
    given = hf.inputs(model, ["what is this <image>", "the <image> is"], [[TEMPLE], [TEMPLE]])
    layers = {"one": (2,), "two compact": (1, 3)}[kind]
    match = SelectAssign(TopK(LastTokenAttention()), Drop())
    steps = [Step(Stage.LLM(k), Once(), match, Identity(), positions="compact") for k in layers]
    alone = hf.inputs(model, ["what is this <image>"], [[TEMPLE]])
    with tokenzoo.build(Recipe(*steps, keep=keep)).attach(model) as attached, torch.no_grad():
        out = model(**given).logits
        assert attached.prompts == (keep, keep)
        single = model(**alone).logits
        assert attached.prompts == (keep,)
        assert float((out[0, -1] - single[0, -1]).abs().max()) <= 1e-4
        options = {"max_new_tokens": 4, "do_sample": False}
        cached = model.generate(**alone, **options)
        assert torch.equal(cached, model.generate(**alone, **options, use_cache=False))
