"""LLaVA, LLaVA-NeXT and LLaVA-OneVision: the bare model at keep=1.0, and exactly what is planned below."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import (
    FILMS,
    KINDS,
    NEW,
    ONE,
    PADDED,
    SINGLE,
    TALL,
    TEMPLE,
    TWO,
    WIDE,
    Batch,
    answer,
    batches,
    ends,
    entering,
    logits,
    real_gap,
    remains,
    whole,
)
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.matchers import Drop, MaxMin, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm, Similarity

EACH = pytest.mark.parametrize("kind", KINDS)
SIDES = pytest.mark.parametrize("side", ["left", "right"])


def at_all_stages(kind: str, **options: Any) -> Recipe:
    """Merged in the blocks, then chosen after the projector, then by norm before layer 2."""

    (block,) = tokenzoo.build("evoprune", start=0).recipe.steps
    apart = SelectAssign(MaxMin(Similarity("x")), Drop())
    large = SelectAssign(TopK(FeatureNorm()), Drop())
    return Recipe(
        Step(Stage.BLOCK, Once(0, keep=2.0), block.matcher, block.merger),
        Step(Stage.PROJECTED, Once(keep=1.5), apart, Identity()),
        Step(Stage.LLM(2), Once(), large, Identity()),
        **options,
    )


def recipes(kind: str) -> list[Any]:
    """Those that the model can take: only LLaVA and LLaVA-NeXT have a CLS token."""
    cls = [] if kind == "llava_onevision" else ["fastervlm"]
    return ["evoprune", *cls, "divprune", "fastv", "dart", at_all_stages]


PAIRS = pytest.mark.parametrize(
    ("kind", "recipe"),
    [(kind, recipe) for kind in KINDS for recipe in recipes(kind)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)


def built(recipe: str | Callable[..., Recipe], kind: str, keep: int | float) -> tokenzoo.Method:
    if isinstance(recipe, str):
        return tokenzoo.build(recipe, keep=keep)
    return tokenzoo.build(recipe(kind, keep=keep))


# --- identity ---


@PAIRS
def test_keeping_all_changes_nothing(kind: str, recipe: Any) -> None:
    model = whole(kind)
    for batch in batches(kind):
        for side in ("left", "right"):
            given = batch.given(model, side)
            bare = logits(model, given)
            with built(recipe, kind, 1.0).attach(model) as attached:
                out = logits(model, given)
                assert attached.plan().visual == 64
            assert real_gap(out, bare, given["attention_mask"]) <= 1e-4
            assert torch.equal(logits(model, given), bare)
        ways = ({}, {"num_beams": 3})
        given = batch.given(model)
        said = [answer(model, given, **way) for way in ways]
        with built(recipe, kind, 1.0).attach(model):
            assert all(map(torch.equal, said, [answer(model, given, **way) for way in ways]))
    assert remains(model) == []


# --- the tokens that enter the language model ---

SHOWS = {
    # Images of one prompt: crops by kind (the base included), and newlines.
    "temple": ((TEMPLE,), {"llava": (1, 0), "llava_next": (5, 2), "llava_onevision": (5, 2)}),
    "tall": ((TALL,), {"llava": (1, 0), "llava_next": (4, 3), "llava_onevision": (4, 3)}),
    "wide": ((WIDE,), {"llava": (1, 0), "llava_next": (4, 1), "llava_onevision": (4, 1)}),
    # OneVision cuts no image into crops that is not alone in its prompt.
    "two": ((TEMPLE, TALL), {"llava": (2, 0), "llava_next": (9, 5), "llava_onevision": (2, 2)}),
}


@EACH
@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize("recipe", ["evoprune", "divprune", at_all_stages])
def test_as_many_tokens_as_planned(kind: str, show: str, recipe: Any) -> None:
    model, (images, counts) = whole(kind), SHOWS[show]
    given = Batch((ONE if len(images) == 1 else TWO,), (images,)).given(model)
    words = int((given["input_ids"] != hf.IMAGE).sum())
    with built(recipe, kind, 21).attach(model) as attached, entering(model) as calls:
        out = logits(model, given)
        crops, newlines = counts[kind]
        visual = attached.plan().visual
        assert visual == (32 if recipe is at_all_stages else 21)  # 1.5 times 21, and half up
        assert attached.features == visual
        assert calls[0]["inputs_embeds"].shape[1] == words + crops * visual + newlines
        assert out.shape[1] == words + crops * visual + newlines
        answer(model, given)
        assert calls[1]["inputs_embeds"].shape[1] == words + crops * visual + newlines


def test_frames_of_a_video_are_not_pooled_again() -> None:
    model = whole("llava_onevision")
    given = FILMS.given(model)
    with tokenzoo.build("evoprune", keep=21).attach(model) as attached, entering(model) as calls:
        logits(model, given)
        # The longest row has an image and a video of three frames, each with its newline at the end.
        words = int((given["input_ids"][1] >= hf.VIDEO + 1).sum()) + 1
        assert attached.plan().visual == attached.features == 21
        crops = given["pixel_values"].shape[1]
        assert crops in (4, 5)
        longest = max(
            words + (4 * 21 + 3) + (3 * 21 + 1),
            int((given["input_ids"][3] >= hf.VIDEO + 1).sum()) + 1 + 5 * 21 + 2,
        )
        assert calls[0]["inputs_embeds"].shape[1] == longest


@EACH
def test_crops_lie_in_the_prompt_base_first_then_row_by_row(kind: str) -> None:
    """The projector's outputs are in the prompt, with a newline after each row of crops."""
    model = whole(kind)
    given = SINGLE.given(model)
    projected: list[Tensor] = []
    handle = model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, out: projected.append(out)
    )
    with tokenzoo.build("evoprune", keep=21).attach(model), entering(model) as calls:
        logits(model, given)
    handle.remove()
    crops, line = projected[0], getattr(model.model, "image_newline", None)  # [crops, 21, c]
    if kind == "llava":
        expected = crops[0]
    else:
        rows = [crops[0], *crops[1:3], line[None], *crops[3:5], line[None]]
        expected = torch.cat(rows)
    start = int((given["input_ids"][0] == hf.IMAGE).int().argmax())
    embedded = calls[0]["inputs_embeds"][0]
    assert torch.equal(embedded[start : start + len(expected)], expected)
    words = model.get_input_embeddings()(given["input_ids"][0][given["input_ids"][0] != hf.IMAGE])
    around = torch.cat([embedded[:start], embedded[start + len(expected) :]])
    assert torch.equal(around, words)


def test_a_video_lies_in_the_prompt_frame_by_frame() -> None:
    model = whole("llava_onevision")
    given = hf.inputs(model, "the <video> ?", videos=[hf.video(3)])
    projected: list[Tensor] = []
    handle = model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, out: projected.append(out)
    )
    with tokenzoo.build("evoprune", keep=21).attach(model), entering(model) as calls:
        logits(model, given)
    handle.remove()
    film = torch.cat([projected[0].flatten(0, 1), model.model.image_newline[None]])
    assert torch.equal(calls[0]["inputs_embeds"][0, 2:-1], film)


# --- the blocks that are read ---


@pytest.mark.parametrize(("layer", "blocks"), [(-2, 5), ([-2], 5), (-1, 6), (4, 4), ([-1], 6)])
def test_blocks_that_no_one_reads_are_not_planned_on(layer: Any, blocks: int) -> None:
    model = hf.llava(vision_feature_layer=layer)
    given = SINGLE.given(model)
    bare = logits(model, given)
    with tokenzoo.build("evoprune", keep=1.0).attach(model):
        assert gap(logits(model, given), bare) <= 1e-4
    with tokenzoo.build("evoprune", keep=0.5).attach(model) as attached:
        out = logits(model, given)
        assert (
            attached.plan().blocks == tokenzoo.build("evoprune", keep=0.5).plan(64, blocks).blocks
        )
        assert attached.counts == attached.plan().blocks
        assert attached.features == 32
        assert out.shape[1] == bare.shape[1] - 32
    assert torch.equal(logits(model, given), bare)


def test_several_hidden_states_are_reduced_after_the_projector_only() -> None:
    model = hf.llava(vision_feature_layer=[-3, -2])
    given = SINGLE.given(model)
    with pytest.raises(AttachError, match=r"works at Stage\.BLOCK; .* at llm, projected"):
        tokenzoo.build("evoprune").attach(model)
    for recipe in ("divprune", "fastv"):
        with tokenzoo.build(recipe, keep=16).attach(model) as attached:
            assert logits(model, given).isfinite().all()
            assert attached.plan().visual == (16 if recipe == "divprune" else 64)
    assert remains(model) == []


def test_a_class_token_that_is_handed_on_is_one_more() -> None:
    model = hf.llava(vision_feature_select_strategy="full")
    given = PADDED.given(model)
    bare = logits(model, given)
    assert int((given["input_ids"] == hf.IMAGE).sum()) == 3 * 65
    with tokenzoo.build("evoprune", keep=1.0).attach(model):
        assert real_gap(logits(model, given), bare, given["attention_mask"]) <= 1e-4
    with tokenzoo.build("evoprune", keep=21).attach(model), entering(model) as calls:
        alone = [logits(model, row)[0, -1] for row in PADDED.rows(model)]
        together = logits(model, given)[:, -1]
        assert gap(together, torch.stack(alone)) <= 1e-4
        words = int((PADDED.rows(model)[1]["input_ids"] != hf.IMAGE).sum())
        assert calls[1]["inputs_embeds"].shape[1] == words + 2 * (21 + 1)


def test_an_image_smaller_than_keep_is_left_whole() -> None:
    model = whole("llava")
    given = PADDED.given(model)
    bare, said = logits(model, given), answer(model, given)
    for recipe in ("evoprune", "fastervlm", "divprune", "fastv", "dart"):
        with tokenzoo.build(recipe, keep=100).attach(model) as attached:
            assert attached.plan().visual == 64
            assert real_gap(logits(model, given), bare, given["attention_mask"]) <= 1e-4
            assert torch.equal(answer(model, given), said)


# --- each row as if it were alone ---


@PAIRS
def test_each_row_of_a_batch_gets_what_it_gets_alone(kind: str, recipe: Any) -> None:
    model = whole(kind)
    for batch in batches(kind):
        rows = batch.rows(model)
        with built(recipe, kind, 21).attach(model) as attached:
            alone = torch.stack([logits(model, row)[0, -1] for row in rows])
            for side in ("left", "right"):
                given = batch.given(model, side)
                out, at = logits(model, given), ends(attached.shorten(given))
                together = out[torch.arange(len(rows)), at]
                assert gap(together, alone) <= 1e-4
            said = torch.cat([answer(model, row) for row in rows])
            given = batch.given(model)
            assert torch.equal(answer(model, given), said)
            assert torch.equal(answer(model, given, use_cache=False), said)


# --- prompts that are short from the start ---


@EACH
@SIDES
@pytest.mark.parametrize("recipe", ["evoprune", "fastv", at_all_stages])
def test_shortened_inputs_give_the_same(kind: str, side: str, recipe: Any) -> None:
    model = whole(kind)
    for batch in batches(kind):
        given = batch.given(model, side)
        whole_ids = given["input_ids"].clone()
        with built(recipe, kind, 21).attach(model) as attached, entering(model) as calls:
            out, said = logits(model, given), answer(model, given)
            for kept in (given, dict(given)):
                short = attached.shorten(kept)
                assert type(short) is type(kept)
                assert torch.equal(logits(model, short), out)
                assert short["input_ids"].shape == calls[-1]["inputs_embeds"].shape[:2]
                assert torch.equal(model.generate(**short, max_new_tokens=NEW)[:, -NEW:], said)
                again = attached.shorten(short)
                assert torch.equal(again["input_ids"], short["input_ids"])
        assert torch.equal(given["input_ids"], whole_ids)  # the caller's own is as it was
        text = short["input_ids"]
        for row, mine in zip(text, whole_ids, strict=True):
            told = [ids[ids > hf.VIDEO].tolist() for ids in (row, mine)]
            assert told[0] == told[1]


# --- labels and positions ---


@EACH
@SIDES
@pytest.mark.parametrize("recipe", ["evoprune", "divprune", at_all_stages, "fastv"])
def test_labels(kind: str, side: str, recipe: Any) -> None:
    model = whole(kind)
    given = PADDED.given(model, side)
    ids = given["input_ids"]
    labels = ids.masked_fill(ids <= hf.VIDEO, -100)
    with built(recipe, kind, 21).attach(model) as attached, torch.no_grad():
        out = model(**given, labels=labels)
        short = attached.shorten({**given, "labels": labels})["labels"]
        assert short.shape == out.logits.shape[:2]
        if recipe == "fastv":
            assert torch.equal(short, labels)
        else:
            assert short.shape[1] < labels.shape[1]
        for row, mine in zip(short, labels, strict=True):
            assert row[row >= 0].tolist() == mine[mine >= 0].tolist()
        loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), short[:, 1:].flatten())
        assert float(out.loss) == pytest.approx(float(loss), rel=1e-5)
        # The same, row by row: the tokens of the answer are where they would be alone.
        losses, words = 0.0, 0
        for row in PADDED.rows(model):
            mine = row["input_ids"].masked_fill(row["input_ids"] <= hf.VIDEO, -100)
            count = int((mine[:, 1:] >= 0).sum())
            losses += float(model(**row, labels=mine).loss) * count
            words += count
        assert float(out.loss) == pytest.approx(losses / words, rel=1e-4)


def test_training_with_labels_moves_the_tower() -> None:
    model = copy.deepcopy(whole("llava"))
    given = PADDED.given(model, "right")
    labels = given["input_ids"].masked_fill(given["input_ids"] <= hf.VIDEO, -100)
    for recipe in ("evoprune", "divprune", "fastv", at_all_stages):
        with built(recipe, "llava", 21).attach(model):
            model.train().zero_grad()
            model(**given, labels=labels).loss.backward()
            for part in ("vision_tower", "multi_modal_projector", "language_model"):
                weights = list(model.get_submodule(f"model.{part}").parameters())
                grads = [p.grad for p in weights if p.grad is not None]
                assert any(bool(grad.abs().max() > 0) for grad in grads), (recipe, part)
                assert all(bool(grad.isfinite().all()) for grad in grads), (recipe, part)


@EACH
@SIDES
@pytest.mark.parametrize("recipe", ["evoprune", "fastv", "dart", at_all_stages])
def test_the_callers_positions_are_those_that_are_made(kind: str, side: str, recipe: Any) -> None:
    model = whole(kind)
    given = PADDED.given(model, side)
    positions = (given["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    with built(recipe, kind, 21).attach(model) as attached, entering(model) as calls:
        out = logits(model, given, position_ids=positions)
        mask = attached.shorten(given)["attention_mask"]
        there, counted = mask.bool(), mask.cumsum(-1) - 1
        assert torch.equal(calls[0]["position_ids"][there], counted[there])
        assert real_gap(out, logits(model, given), mask) <= 1e-4


# --- when, and how it is told ---


@pytest.mark.parametrize(
    ("keep", "counts"), [(21, (43, 33, 32, 21)), (0.25, (33, 25, 24, 16))], ids=["count", "share"]
)
def test_events_have_the_names_of_their_stages(keep: Any, counts: tuple[int, ...]) -> None:
    model = whole("llava")
    told: list[tuple[str, int, int, int]] = []

    def tell(event: Any) -> None:
        before, after = event.before.x.shape, event.after.x.shape
        told.append((event.stage, event.block, before[1], after[1]))

    recipe = at_all_stages("llava", keep=keep)
    block, projected, visual, llm = counts  # the first two with their class token
    with tokenzoo.build(recipe).attach(model, on_reduce=tell) as attached:
        logits(model, SINGLE.given(model))
        assert told == [
            ("block", 0, 65, block),
            ("projected", 4, block, projected),
            ("llm", 2, visual, llm),
        ]
        told.clear()
        answer(model, SINGLE.given(model))
        assert [event[0] for event in told] == ["block", "projected", "llm"]  # in the prompt alone
        assert attached.plan().llm == llm


@pytest.mark.parametrize("recipe", ["evoprune", at_all_stages])
def test_one_model_in_two_threads(recipe: Any) -> None:
    model = copy.deepcopy(whole("llava_next"))
    given = [PADDED.given(model), SINGLE.given(model)]
    with built(recipe, "llava_next", 21).attach(model):
        expected = [answer(model, some) for some in given]
        _in_threads([(model, some) for some in given], expected)


def _in_threads(jobs: list[tuple[Any, Any]], expected: list[Tensor]) -> None:
    wrong: list[Any] = []
    start = threading.Barrier(len(jobs))

    def work(index: int) -> None:
        start.wait()
        for _ in range(5):
            try:
                if not torch.equal(answer(*jobs[index]), expected[index]):
                    wrong.append(index)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@EACH
def test_a_model_without_its_head(kind: str) -> None:
    model = copy.deepcopy(whole(kind)).model
    given = PADDED.given(model)
    with torch.no_grad(), tokenzoo.build("evoprune", keep=21).attach(model) as attached:
        out = model(**given).last_hidden_state
        assert out.shape[:2] == attached.shorten(given)["input_ids"].shape
    assert remains(model) == []
