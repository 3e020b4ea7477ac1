"""Loops by hand and conversations: positions, masks and caches follow the tokens of an attached model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import (
    CACHE,
    CACHES,
    FLOWER,
    NEW,
    TALL,
    WIDE,
    Batch,
    answer,
    cache_of,
    entering,
    logits,
    real_gap,
)
from tests.adapters.models import gap
from tests.conformance.chats import (
    CHATS,
    FIRST,
    LLM,
    MOST,
    SIDES,
    WAYS,
    Chat,
    marks,
    method,
    moved,
    said,
    whole,
)
from tokenzoo.errors import AttachError


def positions_of(model: Any, given: Any) -> Tensor:
    """What the bare model's language model is told, or would be: `[..., b, n]`."""
    with entering(model) as calls:
        logits(model, given)
    told = calls[0].get("position_ids")
    return (given["attention_mask"].cumsum(-1) - 1).clamp_min(0) if told is None else told


@MOST
def test_the_callers_positions_are_those_that_are_made(kind: str, name: str) -> None:
    model, batch = whole(kind), CHATS[kind].batch
    for side in SIDES:
        given = batch.given(model, side)
        positions = positions_of(model, given)
        with method(name).attach(model) as attached, entering(model) as calls:
            found = logits(model, given, position_ids=positions)
            there = attached.shorten(given)["attention_mask"]
            if CHATS[kind].columns:
                real, counted = there.bool(), there.cumsum(-1) - 1
                assert torch.equal(calls[0]["position_ids"][real], counted[real])
            assert real_gap(found, logits(model, given), there) <= 1e-4


@MOST
def test_a_loop_by_hand_in_the_callers_coordinates(kind: str, name: str) -> None:
    """Masks and positions are those of the whole prompt."""
    model, chat = whole(kind), CHATS[kind]
    # With a mask, with positions: a padded batch needs the mask, and of Qwen the positions too.
    batch = [(True, True)] if chat.mrope else [(True, True), (True, False)]
    single = [(True, True), (False, False), (False, True), (True, False)][: 3 if chat.mrope else 4]
    for given, ways in ((chat.batch.given(model), batch), (chat.single(model), single)):
        positions = positions_of(model, given)
        with method(name).attach(model), torch.no_grad():
            expected = said(model, given)
            words = expected.sequences[:, given["input_ids"].shape[1] :]
            for masked, placed in ways:
                mask, places = given["attention_mask"], positions
                call = dict(given)
                del call["attention_mask"]
                cache = None
                for i, wanted in enumerate(expected.logits):
                    own = {"attention_mask": mask} if masked else {}
                    own |= {"position_ids": places} if placed else {}
                    out = model(**call, **own, **{CACHE: cache}, use_cache=True)
                    assert gap(out.logits[:, -1], wanted) <= 1e-4, (masked, placed, i)
                    call, cache = {"input_ids": words[:, i : i + 1]}, cache_of(out)
                    mask, places = F.pad(mask, (0, 1), value=1), places[..., -1:] + 1


Way = tuple[bool, bool, bool | str]


def by_hand(model: Any, given: Any, words: Tensor, way: Way, begin: int = 0) -> Tensor:
    """The logits of a loop with these words: with a mask, with positions of the prompt, and later."""
    masked, first, later = way
    mask, call, cache = given["attention_mask"], dict(given), None
    del call["attention_mask"]
    places, found = begin + torch.arange(mask.shape[1]).expand(mask.shape), list[Tensor]()
    for word in (*words.T, words[:, 0]):
        own = {"attention_mask": mask} if masked else {}
        if cache is not None and later == "of the cache":
            past = int(cache.get_seq_length())
            own |= {"position_ids": torch.full((len(mask), 1), begin + past)}
        elif first if cache is None else later:
            own |= {"position_ids": places}
        out = model(**call, **own, **{CACHE: cache}, use_cache=True)
        found.append(out.logits[:, -1])
        call, cache = {"input_ids": word[:, None]}, cache_of(out)
        mask, places = F.pad(mask, (0, 1), value=1), places[..., -1:] + 1
    return torch.stack(found, 1)


def unequal(model: Any) -> Batch:
    """Rows of equal length, one with an image and one with two: they lose unequally many tokens."""
    texts, images = ("see <image> there", "see <image> and <image> there"), (FLOWER, FLOWER)
    ones = [Batch((text,), (images[: n + 1],)) for n, text in enumerate(texts)]
    lengths = [one.given(model)["input_ids"].shape[1] for one in ones]
    fill = [" dog" * (max(lengths) - n) + " " for n in lengths]
    return Batch((fill[0] + texts[0], fill[1] + texts[1]), (images[:1], images))


@pytest.mark.parametrize(("kind", "name"), [x for x in WAYS.values() if not CHATS[x[0]].mrope])
def test_a_loop_by_hand_whose_rows_lose_unequally(kind: str, name: str) -> None:
    """The caller's rows have no padding, and those of the cache have: whatever a call says of it."""
    model, begin = whole(kind), CHATS[kind].begin
    both = unequal(model)
    words = torch.tensor([[5, 6], [6, 5]])
    with method(name).attach(model), torch.no_grad():
        alone = [
            by_hand(model, Batch((text,), (own,)).given(model), row[None], (True,) * 3, begin)
            for text, own, row in zip(both.prompts, both.images, words, strict=True)
        ]
        given = both.given(model)
        assert bool(given["attention_mask"].all())
        for way in product((True, False), (True, False), (True, False, "of the cache")):
            found = by_hand(model, given, words, way, begin)
            assert gap(found, torch.cat(alone)) <= 1e-4, way


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_5"])
def test_positions_of_a_cache_with_padding_need_a_mask(kind: str) -> None:
    """A model that makes positions of the mask would count the padding that the caller does not know."""
    model = whole(kind)
    given, words = unequal(model).given(model), torch.tensor([[5, 6], [6, 5]])
    with (
        method("evoprune").attach(model),
        torch.no_grad(),
        pytest.raises(AttachError, match=r"lost unequally .* pass attention_mask"),
    ):
        by_hand(model, given, words, (False, False, False))


TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Conversation:
    """Two padded rows: an image, what was said to it, and another image; then words.

    Attributes:
        first: what the processor returns.
        second: what it returns for the new words and the new image alone.
        tokens: the whole second prompt, without pixels.
        one: what was said to the first.
    """

    first: Any
    second: Any
    tokens: dict[str, Tensor]
    one: Any

    @classmethod
    def begun(cls, model: Any, chat: Chat) -> Conversation:
        first = chat.pair(model)
        second = Batch((chat.second,) * 2, ((WIDE,), (WIDE,))).given(model)
        one = said(model, first)
        given = moved(first, torch.cat([one.sequences[:, -NEW:], second["input_ids"]], 1))
        # A second prefix of PaliGemma is read from left to right, bare too.
        for types in {*(TYPES if marks(first) else TYPES[1:])} & first.keys():
            given[types][:, -second["input_ids"].shape[1] :] = second[types]
        names = {"input_ids", "attention_mask", *TYPES} & given.keys()
        return cls(first, second, {key: given[key] for key in names}, one)

    def then(self, two: Any) -> dict[str, Tensor]:
        """The third prompt, of words alone."""
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(len(hf.SPECIAL), len(hf.WORDS), (2, 4), generator=generator)
        return moved(self.tokens, torch.cat([two.sequences[:, -NEW:], words], 1))


@pytest.mark.parametrize(("kind", "name"), [case for case in FIRST if CHATS[case[0]].alone])
def test_a_conversation_is_one_prompt_of_all(kind: str, name: str) -> None:
    """With a recipe for which what is kept depends neither on the words nor on where the prompt ends."""
    if kind == "gemma3" and CACHE != "cache":
        pytest.skip(
            "bare, too, a second image is masked as if it were words before transformers 5.24"
        )
    model, chat = whole(kind), CHATS[kind]
    every = Batch(("<image> <image>",) * 2, ((TALL, WIDE), (FLOWER, WIDE))).given(model)
    with method(name).attach(model), entering(model) as calls:
        talk = Conversation.begun(model, chat)
        answer(model, chat.single(model))  # of another conversation, in between
        begin = len(calls)
        two = said(model, {**talk.second, **talk.tokens}, **{CACHES[0]: cache_of(talk.one)})
        assert calls[begin]["inputs_embeds"].shape[1] < talk.second["input_ids"].shape[1]
        third = talk.then(two)
        three = said(model, third, **{CACHES[1]: cache_of(two)})
        for told, prompt in ((two, talk.tokens), (three, third)):
            at_once = said(model, {**every, **prompt})
            assert torch.equal(told.sequences, at_once.sequences)
            assert gap(torch.stack(told.logits), torch.stack(at_once.logits)) <= 1e-4


@pytest.mark.parametrize(("kind", "name"), [x for x in WAYS.values() if CHATS[x[0]].columns])
def test_a_turn_by_hand_in_the_callers_coordinates(kind: str, name: str) -> None:
    """The answer's last token is in no cache yet."""
    model = whole(kind)
    with method(name).attach(model):
        talk = Conversation.begun(model, CHATS[kind])
        caches = [copy.deepcopy(cache_of(talk.one))]
        two = said(model, {**talk.second, **talk.tokens}, **{CACHE: cache_of(talk.one)})
        caches.append(copy.deepcopy(cache_of(two)))
        third = talk.then(two)
        three = said(model, third, **{CACHE: cache_of(two)})
        # By hand an image after a cache is not shortened.
        turns = [(talk.second, talk.tokens, two)] * (name in LLM) + [({}, third, three)]
        for new, prompt, expected in turns:
            m = 1 + (new["input_ids"].shape[1] if new else 4)
            given = {**new, "input_ids": prompt["input_ids"][:, -m:]}
            given["attention_mask"] = prompt["attention_mask"]
            given["position_ids"] = (prompt["attention_mask"].cumsum(-1) - 1)[:, -m:]
            cache = caches[expected is three]
            assert gap(logits(model, given, **{CACHE: cache})[:, -1], expected.logits[0]) <= 1e-4
