"""Fewer tokens from a layer of Qwen's language model on: M-RoPE, masks and caches, against plain layers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import CACHE, NEW, answer, cache_of, entering, logits, real_gap
from tests.adapters.models import gap
from tests.conformance.chats import moved, said
from tests.pairs import paired
from tokenzoo import Recipe, Scorer, Stage, Step
from tokenzoo.matchers import Bipartite, Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.recipes.dart import dart
from tokenzoo.recipes.pyramiddrop import pyramiddrop
from tokenzoo.recipes.sparsevlm import sparsevlm
from tokenzoo.schedules import Once
from tokenzoo.scorers import (
    FeatureNorm,
    LastTokenAttention,
    Random,
    ReceivedAttention,
    Similarity,
)

KINDS = {"qwen2_vl": qwen.qwen2_vl, "qwen2_5_vl": qwen.qwen2_5_vl}
EACH = pytest.mark.parametrize("kind", KINDS)

KEEP = 0.4
ALONE = ("fastv", "dart", "random", "two layers", "pyramid", "raters")
TWO_STEPS = ("attended, fastv", "merged, dart", "projected, two layers", "projected, next")
PAIRS = paired("kind", KINDS, "name", [*ALONE, *TWO_STEPS])  # both language models have one form


def drop(stage: Stage, scorer: Scorer, keep: float = 1.0) -> Step:
    return Step(stage, Once(keep=keep), SelectAssign(TopK(scorer), Drop()), Identity())


def recipe(name: str, keep: int | float = KEEP) -> Recipe:
    """One of `ALONE`, in the language model alone, or of `TWO_STEPS`, with a first step in the tower."""
    seen = drop(Stage.LLM(2), LastTokenAttention())
    two = (
        drop(Stage.LLM(1), LastTokenAttention(), 1.5),
        drop(Stage.LLM(3), FeatureNorm("all_keys")),
    )
    here = Stage.BLOCK
    alike = Step(here, Once(at=1, keep=1.8), Bipartite(Similarity("keys")), WeightedMean())
    steps = {
        "fastv": (seen,),
        "dart": dart().steps,
        "random": (drop(Stage.LLM(2), Random()),),
        "two layers": two,
        "attended, fastv": (drop(here, ReceivedAttention(), 1.8), seen),
        "merged, dart": (alike, *dart().steps),
        "pyramid": pyramiddrop(layers=(1, 3), factors=(2, 1), positions="keep").steps,
        "raters": sparsevlm(version="2", layers=(1, 2), factors=(2, 1), heads=2).steps,
        "projected, next": (
            drop(Stage.PROJECTED, Random(), 1.5),
            drop(Stage.LLM(2), LastTokenAttention(layer="next")),
        ),
        "projected, two layers": (drop(Stage.PROJECTED, Random(), 2.0), *two),
    }
    return Recipe(*steps[name], keep=keep)


def attached_to(model: Any, name: str, keep: int | float = KEEP, **options: Any) -> Any:
    return tokenzoo.build(recipe(name, keep)).attach(model, **options)


@cache
def whole(kind: str, base: str = "sdpa") -> Any:
    """The model of that name, the same for all tests: they leave it bare."""
    model = KINDS[kind]()
    model.set_attn_implementation(base)
    return model


def alike(model: Any, side: str = "left") -> Any:
    """Prompts with an image of one size each, as much text after it, and more or less before it."""
    temple, flower, *_ = qwen.photos()
    prompts = ["what is <image> ?", "describe the color of <image> ?", "<image> ?"]
    return qwen.inputs(model, prompts, [temple, flower, temple], None, side)


BATCHES = {"batch": qwen.batch, "alike": alike}


def rope(model: Any, given: Any) -> tuple[Tensor, Tensor]:
    """Positions `[3, b, n]` of a whole prompt, as the bare model has them, and of what follows `[b, 1]`."""
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    names = ("input_ids", "mm_token_type_ids", "attention_mask", *names)
    found, delta = model.model.get_rope_index(**{n: given[n] for n in names if n in given})
    return found, delta + given["attention_mask"].sum(1, keepdim=True)


@dataclass
class Told:
    """What entered the language model, call by call, and which columns its layers do not see."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)  # of this call, the visual tokens of each row
    gone: list[tuple[int, int, Tensor]] = field(default_factory=list)  # layer, call, [b, m]

    def __call__(self, event: Any) -> None:
        """Record rows of equal length and equal numbers of visual tokens at once, in order."""
        if event.stage != "llm":
            return
        here, size = len(self.calls) - 1, event.before.x.shape[1]
        done = [
            gone.any(1) for layer, call, gone in self.gone if (layer, call) == (event.block, here)
        ]
        lengths = [len(left) for left in self.left]
        rows = [r for r, n in enumerate(lengths) if n == size and not any(some[r] for some in done)]
        gone = torch.zeros(self.calls[here]["inputs_embeds"].shape[:2], dtype=torch.bool)
        for r, keep in zip(rows, event.plan.keep, strict=True):
            gone[r, self.left[r]] = True
            self.left[r] = self.left[r][keep.sort().values]
            gone[r, self.left[r]] = False
        self.gone.append((event.block, here, gone))

    @property
    def mask(self) -> Tensor:
        """Which of all columns are no padding, `[b, n]`."""
        mask = self.calls[-1]["attention_mask"]
        if mask is None:  # as generate leaves out a mask of ones
            return torch.ones(self.places.shape[1:], dtype=torch.bool)
        return mask.bool()

    @property
    def places(self) -> Tensor:
        """The positions of all columns, `[3, b, n]`."""
        return torch.cat([call["position_ids"][-3:] for call in self.calls], -1)

    def begins(self) -> list[int]:
        """The column at which each call begins, and the one after the last."""
        sizes = [call["inputs_embeds"].shape[1] for call in self.calls]
        return [sum(sizes[:i]) for i in range(len(sizes) + 1)]

    def at(self, layer: int = 3) -> Tensor:
        """Columns `[b, n]` that a layer, or the last one, does not see."""
        begins, found = self.begins(), torch.zeros_like(self.mask)
        for first, call, gone in self.gone:
            if first <= layer:
                found[:, begins[call] : begins[call + 1]] |= gone
        return found


@contextmanager
def reading(model: Any, told: Told) -> Generator[None]:
    """Note the calls of the language model, and of each where its visual tokens are."""

    def ids(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        del module, args
        told.ids.append(kwargs["input_ids"])
        seen = (told.ids[-1] == hf.IMAGE) | (told.ids[-1] == hf.VIDEO)
        seen[:, -1] = False  # the last token of a prompt always stays
        told.left = [row.nonzero()[:, 0] for row in seen]

    handle = model.model.register_forward_pre_hook(ids, with_kwargs=True)
    try:
        with entering(model) as told.calls:
            yield
    finally:
        handle.remove()


def plain(model: Any, told: Told, ahead: int = 0) -> Tensor:
    """Logits `[b, n, v]` of all that entered, at once: layer by layer, with a mask made here for each.

    Args:
        model: the bare model.
        told: what entered, and what was dropped.
        ahead: is added to the positions of all calls after the first.
    """
    language = model.model.language_model
    with torch.no_grad():
        x = torch.cat([call["inputs_embeds"] for call in told.calls], 1)
        n, first = x.shape[1], told.begins()[1]
        angles = language.rotary_emb(x, told.places + ahead * (torch.arange(n) >= first))
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        for i, layer in enumerate(language.layers):
            seen = causal & (told.mask & ~told.at(i))[:, None, None]
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(x.dtype).min)
            x = layer(x, attention_mask=mask, position_embeddings=angles)
        return model.lm_head(language.norm(x))


def by_hand(model: Any, given: Any, words: Tensor) -> list[Tensor]:
    """Logits of a prompt, and of words decoded after it with the cache, in the caller's coordinates."""
    mask = given["attention_mask"]
    _, after = rope(model, given)
    with torch.no_grad():
        out = model(**given, use_cache=True)
        found = [out.logits]
        for i, word in enumerate(words.T):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            out = model(
                input_ids=word[:, None],
                attention_mask=mask,
                position_ids=(after + i).expand(3, -1, -1),
                **{CACHE: cache_of(out)},
                use_cache=True,
            )
            found.append(out.logits)
    return found


def some_words(b: int, k: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(hf.SPECIAL), len(hf.WORDS), (b, k), generator=generator)


@PAIRS
@pytest.mark.parametrize(
    ("base", "side", "batch"),
    [("sdpa", "left", "batch"), ("sdpa", "right", "alike"), ("eager", "left", "alike")],
)
def test_it_is_the_bare_model_that_does_not_see_what_was_dropped(
    kind: str, base: str, side: str, batch: str, name: str
) -> None:
    model = whole(kind, base)
    given = BATCHES[batch](model, side)
    places, after = rope(model, given)
    words = some_words(len(after))
    told = Told()
    with attached_to(model, name, on_reduce=told), reading(model, told):
        ours = by_hand(model, given, words)
    m = told.begins()[1]
    real = told.mask[:, :m]
    if name in ALONE:
        assert torch.equal(told.places[:, :, :m][:, real], places[:, real])
    else:
        assert real.sum() < given["attention_mask"].sum()
    assert torch.equal(told.places[0, :, m:], after + torch.arange(words.shape[1]))
    bare = plain(model, told)
    there = real & ~told.at()[:, :m]
    assert int((real & ~there).sum()) > 0
    assert real_gap(ours[0], bare[:, :m], there) <= 1e-4
    assert gap(torch.cat(ours[1:], 1), bare[:, m:]) <= 1e-4
    # The reference is sharp: without its masks, or with other positions, it is another model.
    reduced = [r for r, left in enumerate(told.at()) if left.any()]
    assert gap(plain(model, Told(told.calls))[reduced, -1], bare[reduced, -1]) > 1e-2
    assert gap(plain(model, told, 3)[reduced, -1], bare[reduced, -1]) > 1e-2


@EACH
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("coming", [False, True])
def test_it_keeps_what_the_last_token_attends_to(kind: str, layer: int, coming: bool) -> None:
    """The choice of FastV, and that of PyramidDrop, from the attention maps of the bare model."""
    model = whole(kind, "eager")
    given = alike(model)
    with torch.no_grad():
        maps = model(**given, output_attentions=True).attentions
    told = Told()
    stairs = {"layers": (layer,), "factors": (1.0,), "positions": "keep"}
    name, options = ("pyramiddrop", stairs) if coming else ("fastv", {"layer": layer})
    chosen = tokenzoo.build(name, keep=7, **options)
    with chosen.attach(model, on_reduce=told) as attached, reading(model, told):
        logits(model, given)
        assert attached.prompts == (7, 7, 7)
    for r, ids in enumerate(given["input_ids"]):
        places = (ids == hf.IMAGE).nonzero()[:, 0]
        paid = maps[layer if coming else layer - 1][r, :, -1].mean(0)[places]
        assert torch.equal(told.left[r], places[paid.topk(7).indices].sort().values)


def check_conversation(
    model: Any, told: Told, outs: list[Tensor], columns: list[int], said: Tensor, grids: Tensor
) -> None:
    """The logits `outs` after these columns are those of plain layers, and all entered where it was.

    What is in the cache after a conversation with two images is `said`, `[1, n]`.
    """
    assert len({call for _, call, _ in told.gone}) == 2
    assert gap(torch.stack(outs, 1), plain(model, told)[:, columns]) <= 1e-4
    everything = {
        "input_ids": said,
        "attention_mask": torch.ones_like(said),
        "mm_token_type_ids": (said == hf.IMAGE).long(),
        "image_grid_thw": grids,
    }
    places, entered = rope(model, everything)[0], torch.cat(told.ids, 1)
    assert torch.equal(entered[entered != hf.IMAGE], said[said != hf.IMAGE])
    assert torch.equal(told.places[:, entered != hf.IMAGE], places[:, said != hf.IMAGE])
    if entered.shape == said.shape:  # nothing was taken out before the language model
        assert torch.equal(told.places, places)


def two_prompts(model: Any) -> tuple[Any, Any, Tensor]:
    """A prompt with an image, another one, and the grids of both."""
    temple, flower, *_ = qwen.photos()
    first = qwen.inputs(model, "see <image> . what is this ?", [temple])
    second = qwen.inputs(model, "and <image> ?", [flower])
    return first, second, torch.cat([first["image_grid_thw"], second["image_grid_thw"]])


@PAIRS
def test_a_conversation_goes_on_with_its_cache(kind: str, name: str) -> None:
    """Three turns, a new image in the second: by plain layers, at the positions of one whole prompt."""
    model, told = whole(kind), Told()
    first, second, grids = two_prompts(model)
    third = qwen.inputs(model, "is it the same ?")
    with attached_to(model, name, on_reduce=told), reading(model, told):
        out = said(model, first)
        outs, calls, prompt = list(out.logits), [0], first
        for new in (second, third):
            calls.append(len(told.calls))
            prompt = moved(prompt, torch.cat([out.sequences[:, -NEW:], new["input_ids"]], 1))
            prompt["mm_token_type_ids"] = (prompt["input_ids"] == hf.IMAGE).long()
            names = ("input_ids", "attention_mask", "mm_token_type_ids")
            tokens = {name: prompt[name] for name in names}
            out = said(model, {**new, **tokens}, **{CACHE: cache_of(out)})
            outs += out.logits
    columns = [told.begins()[call + 1] - 1 + i for call in calls for i in range(NEW)]
    # The answer's last token is in no cache yet.
    check_conversation(model, told, outs, columns, out.sequences[:, :-1], grids)


@EACH
@pytest.mark.parametrize("name", TWO_STEPS)
def test_a_new_image_by_hand_after_a_cache(kind: str, name: str) -> None:
    """Three calls of the model itself, without masks: the second has a word and an image."""
    model, told = whole(kind), Told()
    first, second, grids = two_prompts(model)
    del second["attention_mask"]
    prompts = (first, second, {"input_ids": some_words(1)})
    outs, cache = [], None
    with attached_to(model, name, on_reduce=told), reading(model, told), torch.no_grad():
        for given in prompts:
            out = model(**given, **{CACHE: cache}, use_cache=True)
            outs.append(out.logits[:, -1])
            cache = cache_of(out)
    columns = [begin - 1 for begin in told.begins()[1:]]
    every = torch.cat([given["input_ids"] for given in prompts], 1)
    check_conversation(model, told, outs, columns, every, grids)


@EACH
def test_images_and_slices_each_keep_their_share(kind: str) -> None:
    """As many tokens of each layer as planned for every image and every slice in time of a video."""
    model = whole(kind)
    given = qwen.batch(model)
    grids = [given[name].tolist() for name in ("image_grid_thw", "video_grid_thw")]
    images, films = ([(t, h * w // 4) for t, h, w in some] for some in grids)
    units = [images[:2], [*images[2:], *films], []]
    words = [int(row.sum()) for row in given["attention_mask"]]
    words = [n - sum(t * k for t, k in mine) for n, mine in zip(words, units, strict=True)]
    told = Told()
    with attached_to(model, "two layers", on_reduce=told) as attached, reading(model, told):
        with torch.no_grad():
            held = cache_of(model(**given, use_cache=True))
        budgets = {k: attached.plan(k) for mine in units for _, k in mine}
        last = [sum(t * budgets[k].llm for t, k in mine) for mine in units]
        assert all(budgets[k].visual == k for k in budgets)
        assert attached.prompts == tuple(last)
        for r, left in enumerate(told.left):
            assert len(left) == last[r]
        lengths = [held.get_seq_length(i) for i in range(4)]
        n = given["input_ids"].shape[1]
        assert lengths[0] == n
        assert lengths[1] == lengths[2] < n
        assert lengths[3] == max(a + b for a, b in zip(words, last, strict=True))
    with attached_to(model, "attended, fastv") as attached:
        logits(model, given)
        last = [sum(t * attached.plan(k).llm for t, k in mine) for mine in units]
        assert attached.prompts == tuple(last)


@EACH
@pytest.mark.parametrize("keep", [5, 1])
def test_a_prompt_that_ends_with_an_image(kind: str, keep: int) -> None:
    """Its last token is a visual one, from which the answer is read: it stays, and is counted."""
    model = whole(kind)
    temple, flower, *_ = qwen.photos()
    given = qwen.inputs(model, ["what is this <image>", "the <image> is"], [temple, flower])
    words = some_words(2)
    told = Told()
    with attached_to(model, "two layers", keep, on_reduce=told) as attached, reading(model, told):
        ours = by_hand(model, given, words)
        assert attached.prompts == (keep, keep)
    if keep == 1:
        # Of the first row the last token alone is what stays: nothing was chosen, and nothing told.
        gone = given["input_ids"] == hf.IMAGE
        gone[0, -1] = False
        gone[1] = False
        told.gone.append((3, 0, gone))
    bare = plain(model, told)
    assert gap(ours[0][:, -1], bare[:, told.begins()[1] - 1]) <= 1e-4
    assert gap(torch.cat(ours[1:], 1), bare[:, -words.shape[1] :]) <= 1e-4
    with attached_to(model, "two layers", keep):
        assert torch.equal(answer(model, given, use_cache=False), answer(model, given))
