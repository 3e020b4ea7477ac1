"""A call of every whole model that is attached: prompts, labels, positions and caches follow its tokens."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import internvl
from tests.adapters.hf.vlm.calls import (
    CACHE,
    CACHES,
    NEW,
    Batch,
    answer,
    cache_of,
    ends,
    entering,
    logits,
    real_gap,
    remains,
)
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tests.conformance.chats import (
    CASES,
    CHATS,
    EACH,
    FLOWER,
    KINDS,
    LLM,
    SOME,
    TALL,
    WIDE,
    Chat,
    marks,
    method,
    moved,
    said,
    whole,
)
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm

SIDES = ("left", "right")


@EACH
def test_keeping_all_changes_nothing(kind: str, name: str) -> None:
    """All of them, or more than any image has."""
    model, batch = whole(kind), CHATS[kind].batch
    given = [batch.given(model, side) for side in SIDES]
    bare = [logits(model, some) for some in given]
    ways = ({}, {"num_beams": 3})
    answers = [answer(model, given[0], **way) for way in ways]
    for keep in (1.0, 100):
        with method(name, keep).attach(model):
            for some, expected in zip(given, bare, strict=True):
                assert real_gap(logits(model, some), expected, some["attention_mask"]) <= 1e-5
            for way, expected in zip(ways, answers, strict=True):
                assert torch.equal(answer(model, given[0], **way), expected)
    assert remains(model) == []
    assert torch.equal(logits(model, given[0]), bare[0])


@EACH
def test_a_prompt_has_as_many_tokens_as_planned(kind: str, name: str) -> None:
    """In `forward` and in `generate`, which reduces once; detached, the model is bare."""
    model, chat = whole(kind), CHATS[kind]
    given = chat.batch.given(model)
    bare = logits(model, given)
    events: list[tuple[Any, ...]] = []

    def tell(event: Any) -> None:
        events.append((event.stage, event.block, event.before.x.shape, event.after.x.shape))

    with method(name).attach(model, on_reduce=tell) as attached, entering(model) as calls:
        found, once = logits(model, given), list(events)
        events.clear()
        answer(model, given)
        assert events == once != []
        short = attached.shorten(dict(given))["input_ids"]
        assert [tuple(call["inputs_embeds"].shape[:2]) for call in calls[:2]] == [short.shape] * 2
        if chat.tile is not None:
            plan, tiles = attached.plan(), (given["input_ids"] == hf.IMAGE).sum(1) // chat.tile
            assert plan.tokens == chat.tile
            assert torch.equal((short == hf.IMAGE).sum(1), tiles * plan.visual)
            if name in LLM:
                assert plan.visual == chat.tile
            else:
                assert (attached.counts, attached.features) == (plan.blocks, plan.visual)
            if name in (*LLM, "everywhere"):
                assert attached.prompts == tuple((tiles * plan.llm).tolist())
    assert gap(found[:1, -1], bare[:1, -1]) > 1e-3
    assert torch.equal(logits(model, given), bare)
    assert remains(model) == []


@EACH
def test_rows_are_answered_as_if_they_were_alone(kind: str, name: str) -> None:
    model, batch = whole(kind), CHATS[kind].batch
    rows, given = batch.rows(model), batch.given(model)
    with method(name).attach(model) as attached:
        alone = torch.stack([logits(model, row)[0, -1] for row in rows])
        for side in SIDES:
            padded = batch.given(model, side)
            last = logits(model, padded)[torch.arange(len(rows)), ends(attached.shorten(padded))]
            assert gap(last, alone) <= 1e-4
        answers = answer(model, given)
        assert torch.equal(answers, torch.cat([answer(model, row) for row in rows]))
        assert torch.equal(answers, answer(model, given, use_cache=False))


@EACH
def test_shortened_inputs_give_the_same(kind: str, name: str) -> None:
    model, batch = whole(kind), CHATS[kind].batch
    with method(name).attach(model) as attached:
        for side in SIDES:
            given = batch.given(model, side)
            ids = given["input_ids"].clone()
            for kept in (given, dict(given)):
                short = attached.shorten(kept)
                assert type(short) is type(kept)
                assert torch.equal(kept["input_ids"], ids)  # the caller's own is as it was
                assert torch.equal(attached.shorten(short)["input_ids"], short["input_ids"])
            there = short["attention_mask"]
            assert real_gap(logits(model, short), logits(model, given), there) <= 1e-5
            for row, whole_row in zip(short["input_ids"], ids, strict=True):
                assert row[row > hf.VIDEO].tolist() == whole_row[whole_row > hf.VIDEO].tolist()
            if side == "left":
                assert torch.equal(answer(model, short), answer(model, given))


# Of labels alone cdpruner would have no question: test_text.py.
@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] != "cdpruner"])
def test_labels(kind: str, name: str) -> None:
    model, batch = whole(kind), CHATS[kind].batch
    with method(name).attach(model) as attached:
        adapter = attached.adapter
        parts = (f"model.{adapter.spec.tower}", adapter.projector, f"model.{adapter.spec.language}")
        for side in SIDES:
            given = batch.given(model, side)
            ids = given["input_ids"]
            given["labels"] = ids.masked_fill(ids <= hf.VIDEO, -100)
            short = attached.shorten(given)
            ids, labels = short["input_ids"], short["labels"]
            assert torch.equal(labels, ids.masked_fill(ids <= hf.VIDEO, -100))
            out = model(**given)
            loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            assert gap(out.loss, loss) <= 1e-5
            out.loss.backward()
            for part in parts:
                weights = list(model.get_submodule(part).parameters())
                grads = [weight.grad for weight in weights if weight.grad is not None]
                assert all(bool(grad.isfinite().all()) for grad in grads)
                assert any(bool(grad.abs().max() > 0) for grad in grads)
            model.zero_grad()


def positions_of(model: Any, given: Any) -> Tensor:
    """What the bare model's language model is told, or would be: `[..., b, n]`."""
    with entering(model) as calls:
        logits(model, given)
    told = calls[0].get("position_ids")
    return (given["attention_mask"].cumsum(-1) - 1).clamp_min(0) if told is None else told


@EACH
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


@EACH
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


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if not CHATS[case[0]].mrope])
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


@pytest.mark.parametrize("kind", [kind for kind, chat in CHATS.items() if chat.mrope])
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


BY_TURN = ("cdpruner", "everywhere")
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


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, name) for k, name in CASES if CHATS[k].alone and name not in (*LLM, *BY_TURN)],
)
def test_a_conversation_is_one_prompt_of_all(kind: str, name: str) -> None:
    """Except where what is kept depends on the words, or on where the prompt ends."""
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


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if CHATS[case[0]].columns])
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


@SOME
def test_other_forms_of_a_call(kind: str, name: str) -> None:
    model = whole(kind)
    given = dict(CHATS[kind].batch.given(model))
    text = Batch(("is the sky blue ?", "describe"), ((), ()))
    bare = (logits, answer) if CHATS[kind].words else ()
    without = [call(model, text.given(model)) for call in bare]
    with method(name).attach(model), torch.no_grad():
        found = logits(model, given)
        assert torch.equal(model(**given, return_dict=False)[0], found)
        if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
            assert gap(logits(model, given, logits_to_keep=2), found[:, -2:]) <= 1e-5
        states = model(**given, output_hidden_states=True).hidden_states
        assert name in LLM or {x.shape[1] for x in states} == {found.shape[1]}
        ids = given.pop("input_ids")
        assert torch.equal(model(ids, **given).logits, found)
        given["input_ids"] = ids
        for call, expected in zip(bare, without, strict=True):
            assert torch.equal(call(model, text.given(model)), expected)
    with method(name).attach(model.model) as attached, torch.no_grad():
        hidden = model.model(**given).last_hidden_state
        assert hidden.shape[:2] == attached.shorten(given)["input_ids"].shape
        assert gap(hidden[:, -1], states[-1][:, -1]) <= 1e-5
    assert remains(model) == []


TILED: dict[str, Callable[[], Any]] = {
    **{kind: lambda kind=kind: whole(kind) for kind in CHATS if CHATS[kind].tile},
    "internvl, norms": lambda: internvl.internvl(
        vision={"norm_type": "rms_norm", "use_qk_norm": True}
    ),
}


@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize("stage", [Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED], ids=repr)
def test_what_is_left_are_rows_of_the_bare_model(kind: str, stage: Stage) -> None:
    """Four of a tile: a square number, which InternVL's pixel shuffle would take for a grid."""
    model, keep = TILED[kind](), 4
    chat = CHATS[kind.removesuffix(", norms")]
    given = chat.batch.given(model)
    chosen = SelectAssign(TopK(FeatureNorm()), Drop())
    step = Step(stage, Once(-1 if stage == Stage.BLOCK else None), chosen, Identity())
    zoo = tokenzoo.build(Recipe(step, keep=keep))
    with torch.no_grad(), zoo.attach(model, trace=True) as attached:
        found, short = logits(model, given), attached.shorten(dict(given))
        kept = attached.record.keep[:, -keep:]
    kept = kept - attached.adapter.prefix
    assert not torch.equal(kept, torch.arange(keep).expand_as(kept))
    with torch.no_grad():
        rows = model.model.get_image_features(given["pixel_values"], return_dict=True).pooler_output
        rows = torch.cat(list(rows)).reshape(len(kept), chat.tile, -1)
        rows = rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[2]))
        embeds = model.get_input_embeddings()(short["input_ids"])
        embeds[short["input_ids"] == hf.IMAGE] = rows.flatten(0, 1)
        rest = {key: short[key] for key in ("attention_mask", "token_type_ids") if key in short}
        expected = model(inputs_embeds=embeds, **rest).logits
    assert real_gap(found, expected, short["attention_mask"]) <= 1e-5


@KINDS
def test_prompt_lookup_says_the_same(kind: str, name: str) -> None:
    model, chat = whole(kind), CHATS[kind]
    given = Batch(("<image> the dog the dog the dog",), ((FLOWER,),)).given(model)
    if not chat.assisted:
        return
    with method(name).attach(model):
        assert torch.equal(answer(model, given, prompt_lookup_num_tokens=2), answer(model, given))
