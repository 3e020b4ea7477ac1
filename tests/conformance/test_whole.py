"""A call of every whole model that is attached: prompts, labels and answers follow its tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
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
    FLOWER,
    Batch,
    answer,
    ends,
    entering,
    logits,
    real_gap,
    remains,
)
from tests.adapters.models import gap
from tests.conformance.chats import (
    ASKED,
    CHATS,
    EACH,
    FIRST,
    INSIDE,
    LLM,
    MOST,
    SIDES,
    method,
    whole,
)
from tokenzoo import Recipe, Stage, Step
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm

Answers = list[tuple[dict[str, int], Tensor]]


@cache
def bare_model(kind: str) -> tuple[list[Tensor], Answers]:
    """The logits of a bare model with padding on either side, and its answers, with beams too."""
    model, batch = whole(kind), CHATS[kind].batch
    given = [batch.given(model, side) for side in SIDES]
    # Before transformers 5.24 a bare Qwen3.5 mixes up the images of its beams.
    mixes = CHATS[kind].linear and CACHE != "cache"
    ways: tuple[dict[str, int], ...] = ({}, {} if mixes else {"num_beams": 3})
    return [logits(model, some) for some in given], [
        (way, answer(model, given[0], **way)) for way in ways
    ]


@EACH
def test_keeping_all_changes_nothing(kind: str, name: str) -> None:
    """All of them, or more than any image has."""
    model, batch = whole(kind), CHATS[kind].batch
    given = [batch.given(model, side) for side in SIDES]
    bare, answers = bare_model(kind)
    for keep, (way, expected) in zip((1.0, 100), answers, strict=True):
        with method(name, keep).attach(model):
            for some, wanted in zip(given, bare, strict=True):
                assert real_gap(logits(model, some), wanted, some["attention_mask"]) <= 1e-5
            assert torch.equal(answer(model, given[0], **way), expected)
    assert remains(model) == []
    assert torch.equal(logits(model, given[0]), bare[0])


@EACH
def test_a_prompt_has_as_many_tokens_as_planned(kind: str, name: str) -> None:
    """In `forward` and in `generate`, which reduces once; detached, the model is bare."""
    model, chat = whole(kind), CHATS[kind]
    given = chat.batch.given(model)
    bare = bare_model(kind)[0][0]
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
            if name in INSIDE:
                assert attached.prompts == tuple((tiles * plan.llm).tolist())
    assert gap(found[:, -1], bare[:, -1]) > 1e-3
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
    if (kind, name) == ("qwen3_vl", "over frames"):
        pytest.skip("a slice without tokens has no place in a short prompt: test_videos.py")
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


@MOST
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


@ASKED
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
        assert name in INSIDE or {x.shape[1] for x in states} == {found.shape[1]}
        ids = given.pop("input_ids")
        assert torch.equal(model(ids, **given).logits, found)
        given["input_ids"] = ids
        for call, expected in zip(bare, without, strict=True):
            assert torch.equal(call(model, text.given(model)), expected)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, chat.recipes[-1]) for kind, chat in CHATS.items()]
)
def test_without_its_head_it_is_the_same_model(kind: str, name: str) -> None:
    model = whole(kind)
    given = CHATS[kind].batch.given(model)
    with method(name).attach(model), torch.no_grad():
        expected = model(**given, output_hidden_states=True).hidden_states[-1]
    with method(name).attach(model.model) as attached, torch.no_grad():
        hidden = model.model(**given).last_hidden_state
        assert hidden.shape[:2] == attached.shorten(given)["input_ids"].shape
        assert gap(hidden[:, -1], expected[:, -1]) <= 1e-5
    assert remains(model) == []


TILED: dict[str, Callable[[], Any]] = {
    **{kind: lambda kind=kind: whole(kind) for kind, _ in FIRST if CHATS[kind].tile},
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


@pytest.mark.parametrize(("kind", "name"), [case for case in FIRST if CHATS[case[0]].assisted])
def test_prompt_lookup_says_the_same(kind: str, name: str) -> None:
    model = whole(kind)
    given = Batch(("<image> the dog the dog the dog",), ((FLOWER,),)).given(model)
    with method(name).attach(model):
        assert torch.equal(answer(model, given, prompt_lookup_num_tokens=2), answer(model, given))
