"""The whole models that answer prompts with images, small, and the prompts that they are asked.

A new model joins by one row of `CHATS`. What is tried with it is decided here, so that a new model adds
little to the time of the tests:

- Every model with each of its recipes (`EACH`) keeps what all else stands on: nothing changes where all
  tokens are kept, counts are those planned, a row alone is the row in the batch, a cache changes nothing,
  shortened inputs give the same, and what is detached is bare.
- A model that is `like` another one has that one's spec but for names: no code of ours is only for it. It
  has one recipe, and takes part in nothing more.
- What depends on the images, once with each model that is like no other (`FIRST`).
- The ways of calling a model (`ASKED`) depend on how its language model is told that tokens are gone, not
  on its tower or tiles: once with each of `WAYS`. A new model joins only if it has a way of its own.
- What depends on both (`MOST`): labels and positions.

`test_pairs.py` holds the specs of all models to this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import (
    cosmos,
    gemma3,
    glm,
    idefics3,
    internvl,
    lfm2_vl,
    minicpm,
    molmo2,
    paligemma,
    qwen,
)
from tests.adapters.hf.vlm.calls import (
    CACHE,
    FLOWER,
    NEW,
    NONE,
    ONE,
    PADDED,
    SMALL,
    TALL,
    TEMPLE,
    TWO,
    WIDE,
    Batch,
)
from tests.adapters.hf.vlm.over_frames import over_frames
from tokenzoo import Recipe, Stage, Step
from tokenzoo.matchers import Drop, MaxMin, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm, Similarity

LLM = ("fastv", "dart")  # they reduce in the language model alone
SIDES = ("left", "right")  # of padding
INSIDE = (*LLM, "everywhere")  # in the language model too


@dataclass(frozen=True)
class Chat:
    """A whole model, and its prompts.

    Attributes:
        make: the model.
        batch: several prompts, of several sizes.
        recipes: that it is tried with; the first alone where one says enough.
        like: the model whose spec it has but for names, which is tried in all that it is not.
        first: two prompts of different lengths with an image each.
        second: what is asked after each of them, with another image.
        tile: tokens of an image or tile of its one size.
        words: it reads prompts without images, too.
        mrope: a token has a time, a row and a column, and so a caller has to count positions.
        alone: an image gets as many tokens in a prompt with others as alone.
        assisted: the bare model says with an assistant what it says alone.
        static: the bare model runs with a static cache.
        begin: the first position.
        linear: the first layers have linear attention: their cache has no length, and is made of a config.
    """

    make: Callable[..., Any]
    batch: Batch
    recipes: tuple[str, ...]
    like: str = ""
    first: tuple[str, str] = ("see <image> there", "<image> ?")
    second: str = "and <image> ?"
    tile: int | None = None
    words: bool = True
    mrope: bool = False
    alone: bool = True
    assisted: bool = True
    static: bool = True
    begin: int = 0
    linear: bool = False

    @property
    def columns(self) -> bool:
        """Whether positions are columns from 0 on, without padding."""
        return self.words and not self.mrope

    def single(self, model: Any) -> Any:
        """One prompt with an image."""
        return Batch(self.first[:1], ((FLOWER,),)).given(model)

    def pair(self, model: Any) -> Any:
        """Two prompts with an image each, padded."""
        return Batch(self.first, ((TALL,), (FLOWER,))).given(model)


THUMBNAIL = FLOWER.resize((28, 28))  # Qwen makes four tokens of it
QWEN = Batch(
    ("what is <image> ?", "see <image> and <video> .", NONE, "<video> and <image> near <image> ?"),
    ((THUMBNAIL,), (WIDE,), (), (TALL, THUMBNAIL)),
    (qwen.video(4), qwen.video(2, of=1)),
)
PHOTOS = Batch(
    ("what is <image> ?", "see <image> .", NONE, ONE), ((THUMBNAIL,), (WIDE,), (), (TALL,))
)
FILMS = Batch(
    (ONE, TWO, NONE, "user: <video> what is this ?", "<image> and <video> is this the same ?"),
    ((WIDE,), (FLOWER, SMALL), (), (), (TALL,)),
    (hf.video(3), hf.video(3, of=1)),
)
# The longest row has no image: when the others are shortened, the batch stays as long as it is.
WORDY = Batch(("<image> ?", " ".join(["is the sky blue"] * 40)), ((TEMPLE,), ()))
TILES = Batch((ONE, TWO, NONE), ((WIDE,), (TALL, FLOWER), ()))
SIZES = Batch((ONE, TWO, NONE), ((WIDE,), (TALL.resize((40, 70)), FLOWER.resize((56, 56))), ()))
BEFORE = Batch(  # of PaliGemma images come before words, and every prompt has one
    ("<image> what is this ?", "<image> <image> what is different ?", "<image> ?"),
    ((WIDE,), (TALL, FLOWER), (WIDE,)),
)


def paligemma_vl(text: str, *recipes: str, like: str = "") -> Chat:
    return Chat(
        partial(paligemma.paligemma, text),
        BEFORE,
        recipes,
        like,
        first=("<image> see the dog there", "<image> ?"),
        second="<image> and here ?",
        tile=paligemma.TOKENS,
        words=False,
        assisted=False,  # the proposals of an assistant are read in both directions
        static=text == "gemma",
        begin=1,
    )


def qwen_vl(make: Callable[..., Any], *recipes: str, like: str = "", linear: bool = False) -> Chat:
    # Linear attention forgets no proposals of an assistant.
    return Chat(make, QWEN, recipes, like, mrope=True, assisted=not linear, linear=linear)


ALL = ("evoprune", "divprune", "cdpruner", "fastv", "everywhere")
TILE = {"tile": idefics3.TOKENS}
CHATS = {
    "llava": Chat(hf.llava, PADDED, ALL, tile=64),
    "llava, wordy": Chat(hf.llava, WORDY, ("evoprune", "fastv"), "llava", tile=64),
    "llava_next": Chat(hf.llava_next, PADDED, ("fastervlm", "everywhere")),
    "llava_onevision": Chat(
        hf.llava_onevision, FILMS, ("divprune", "dart", "over frames"), alone=False
    ),
    "qwen2_5_vl": qwen_vl(qwen.qwen2_5_vl, *ALL),
    "qwen2_vl": qwen_vl(qwen.qwen2_vl, "tome", like="qwen2_5_vl"),
    "qwen3_vl": qwen_vl(qwen.qwen3_vl, "tome", "everywhere", "over frames"),
    "qwen3_vl_moe": qwen_vl(qwen.qwen3_vl_moe, "tome", like="qwen3_vl"),
    "qwen3_5": qwen_vl(qwen.qwen3_5, "before the LLM", linear=True),
    "qwen3_5_moe": qwen_vl(qwen.qwen3_5_moe, "tome", like="qwen3_5", linear=True),
    "glm4v": Chat(glm.glm4v, PHOTOS, ("before the LLM",), mrope=True),
    "glm4v_moe": Chat(glm.glm4v_moe, PHOTOS, ("tome",), "glm4v", mrope=True),
    "internvl": Chat(internvl.internvl, TILES, ("fastervlm", "everywhere"), tile=internvl.TOKENS),
    "gemma3": Chat(gemma3.gemma3, TILES, ("evoprune", "before the LLM"), tile=gemma3.TOKENS),
    "idefics3": Chat(idefics3.idefics3, TILES, ("tome", "everywhere"), **TILE),
    "smolvlm": Chat(idefics3.smolvlm, TILES, ("evoprune",), "idefics3", **TILE),
    "lfm2_vl": Chat(lfm2_vl.lfm2_vl, SIZES, ("tome", "before the LLM")),
    "minicpmv4_6": Chat(minicpm.minicpmv4_6, FILMS, ("divprune", "fastv"), assisted=False),
    "molmo2": Chat(
        molmo2.molmo2,
        TILES,
        ("divprune", "cdpruner"),
        alone=False,  # all its images see each other, those of a later prompt too
        assisted=False,
        static=CACHE == "cache",  # with padding, from transformers 5.24 on
    ),
    "paligemma": paligemma_vl("gemma", "evoprune", "before the LLM"),
    "paligemma2": paligemma_vl("gemma2", "divprune", like="paligemma"),
}
if cosmos.KNOWN:
    CHATS["cosmos3_edge"] = qwen_vl(cosmos.cosmos3_edge, "evoprune", "everywhere")
WAYS = {
    "placeholders are taken out": ("llava", "evoprune"),
    "a batch stays as long as it is": ("llava, wordy", "evoprune"),
    "layers have fewer tokens": ("llava", "fastv"),
    "images and videos": ("llava_onevision", "dart"),
    "M-RoPE": ("qwen2_5_vl", "evoprune"),
    "M-RoPE in layers with fewer tokens": ("qwen2_5_vl", "fastv"),
    "features of inner blocks for the first layers": ("qwen3_vl", "everywhere"),
    "linear attention, with M-RoPE": ("qwen3_5", "before the LLM"),
    "convolutions": ("lfm2_vl", "tome"),
    "images see each other, windows": ("gemma3", "evoprune"),
    "a prompt sees itself, positions from 1 on": ("paligemma", "evoprune"),
    "a tower that is not followed, grids in the call": ("molmo2", "divprune"),
}
"""The ways in which a language model is told of fewer tokens, and with what each is tried."""

CASES = [(kind, name) for kind, chat in CHATS.items() for name in chat.recipes]
FIRST = [(kind, chat.recipes[0]) for kind, chat in CHATS.items() if not chat.like]
EACH = pytest.mark.parametrize(("kind", "name"), CASES)
ASKED = pytest.mark.parametrize(("kind", "name"), WAYS.values(), ids=WAYS)
MOST = pytest.mark.parametrize(("kind", "name"), dict.fromkeys([*FIRST, *WAYS.values()]))


def method(name: str, keep: int | float = 0.35) -> tokenzoo.Method:
    """A recipe of the zoo, one over frames, or one with a step at every stage, or all but the last."""
    if name == "over frames":
        return tokenzoo.build(over_frames(keep))
    if name not in ("everywhere", "before the LLM"):
        return tokenzoo.build(name, keep=keep)
    (block,) = tokenzoo.build("evoprune", start=0).recipe.steps
    large = SelectAssign(TopK(FeatureNorm()), Drop())
    apart = SelectAssign(MaxMin(Similarity("x")), Drop())
    steps = [
        Step(Stage.BLOCK, Once(0, keep=2.0), block.matcher, block.merger),
        Step(Stage.FEATURES, Once(keep=1.5), large, Identity()),
        Step(Stage.PROJECTED, Once(keep=1.2), apart, Identity()),
        Step(Stage.LLM(2), Once(), large, Identity()),
    ]
    return tokenzoo.build(Recipe(*(steps if name == "everywhere" else steps[:3]), keep=keep))


@cache
def whole(kind: str) -> Any:
    """The model of that name, the same for all tests: they leave it bare."""
    return CHATS[kind].make()


def marks(given: Any) -> bool:
    """Whether the token types of a call are 1 of images alone, as Gemma 3's are."""
    types = given.get("token_type_ids")
    return types is not None and torch.equal(types == 1, given["input_ids"] == hf.IMAGE)


def moved(given: Any, more: Tensor) -> dict[str, Tensor]:
    """The same call with more words `[b, k]` after the prompt."""
    new = {**given, "input_ids": torch.cat([given["input_ids"], more], 1)}
    # Of words, PaliGemma's type is 1; Gemma 3's is 0, and 1 that of images.
    fills = {
        "attention_mask": 1,
        "mm_token_type_ids": 0,
        "token_type_ids": 0 if marks(given) else 1,
    }
    for name, fill in fills.items():
        if name in given:
            new[name] = torch.cat([given[name], torch.full_like(more, fill)], 1)
    return new


def said(model: Any, given: Any, **options: Any) -> Any:
    """What `generate` returns, with its logits and its cache."""
    greedy = {"max_new_tokens": NEW, "do_sample": False, **options}
    return model.generate(**given, **greedy, return_dict_in_generate=True, output_logits=True)
