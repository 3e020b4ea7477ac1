"""Whole Qwen2-VL and Qwen2.5-VL models: prompts, positions and answers stay in step with fewer tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenzoo
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import (
    CACHE,
    CACHES,
    NEW,
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
from tests.pairs import paired
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, BadArgumentError, MissingEvidenceError
from tokenzoo.matchers import Bipartite, Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.schedules import Mean, Once
from tokenzoo.scorers import Random, Similarity
from tokenzoo.token_map import TokenMap

KINDS = {"qwen2_vl": qwen.qwen2_vl, "qwen2_5_vl": qwen.qwen2_5_vl}
EACH = pytest.mark.parametrize("kind", KINDS)
SIDES = pytest.mark.parametrize("side", ["left", "right"])

DROP = SelectAssign(TopK(Random()), Drop())
ODD = (
    (2, 2),
    (2, 6),
    (6, 2),
    (4, 10),
    (10, 14),
    (14, 6),
    (2, 26),
    (8, 8),
    (6, 18),
    (22, 4),
    (10, 10),
)
"""Rows and columns of patches: in windows of 6 x 6 patches most of them are ragged."""


def recipe(name: str, keep: int | float = 0.4) -> Recipe:
    """A recipe of the zoo, or one of several steps."""
    if name == "two stages":
        first = Step(Stage.BLOCK, Mean(), Bipartite(Similarity("keys")), WeightedMean())
        return Recipe(first, Step(Stage.PROJECTED, Once(), DROP, Identity()), keep=keep)
    if name == "features":
        return Recipe(Step(Stage.FEATURES, Once(), DROP, Identity()), keep=keep)
    if name == "projected":
        return Recipe(Step(Stage.PROJECTED, Once(), DROP, Identity()), keep=keep)
    return tokenzoo.build(name, keep=keep).recipe


NAMES = ("evoprune", "random", "uniform", "features", "projected", "two stages")
RECIPES = pytest.mark.parametrize("name", NAMES)
PAIRS = paired("kind", KINDS, "name", NAMES)


@cache
def whole(kind: str) -> Any:
    """The model of that name, the same for all tests: they leave it bare."""
    return KINDS[kind]()


def attached_to(model: Any, name: str, keep: int | float = 0.4, **options: Any) -> Any:
    return tokenzoo.build(recipe(name, keep)).attach(model, **options)


def moved(given: Any, more: Tensor) -> dict[str, Tensor]:
    """The same call with an answer `[b, k]` after the prompt."""
    new = {**given, "input_ids": torch.cat([given["input_ids"], more], 1)}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in given:
            new[name] = torch.cat([given[name], torch.full_like(more, fill)], 1)
    return new


def said(model: Any, given: Any, **options: Any) -> Any:
    """What `generate` returns, with its logits."""
    return model.generate(
        **given,
        **{"max_new_tokens": NEW, "do_sample": False, **options},
        return_dict_in_generate=True,
        output_logits=True,
    )


# --- nothing changes ---


@EACH
@SIDES
@pytest.mark.parametrize("name", ["evoprune", "random", "two stages", "tome"])
def test_keeping_all_changes_nothing(kind: str, side: str, name: str) -> None:
    model = whole(kind)
    given = qwen.batch(model, side)
    bare = logits(model, given)
    greedy, beams = answer(model, given), answer(model, given, num_beams=3)
    with attached_to(model, name, 1.0):
        assert real_gap(logits(model, given), bare, given["attention_mask"]) <= 1e-4
        assert torch.equal(answer(model, given), greedy)
        assert torch.equal(answer(model, given, num_beams=3), beams)
    assert not remains(model)
    assert torch.equal(logits(model, given), bare)


@EACH
def test_text_alone_is_read_as_ever(kind: str) -> None:
    model = whole(kind)
    given = qwen.inputs(model, ["is the sky blue ?", "describe"])
    bare, words = logits(model, given), answer(model, given)
    with attached_to(model, "evoprune"):
        assert torch.equal(logits(model, given), bare)
        assert torch.equal(answer(model, given), words)


@EACH
def test_a_thumbnail_is_left_whole(kind: str) -> None:
    model = whole(kind)
    *_, small = qwen.photos()
    given = qwen.inputs(model, "what is <image> ?", [small.resize((28, 28))])
    bare = logits(model, given)
    with attached_to(model, "random", 8) as attached:
        assert attached.plan(4).features == 4
        assert gap(logits(model, given), bare) <= 1e-5
        assert attached.passes[0].features == 4


# --- counts and positions ---


@EACH
@RECIPES
def test_as_many_tokens_as_planned(kind: str, name: str) -> None:
    model = whole(kind)
    width = model.config.vision_config.patch_size**2 * 6
    for height, columns in ODD:
        n = height * columns // 4
        image = {"image_grid_thw": torch.tensor([[1, height, columns], [1, 4, 4]])}
        image["pixel_values"] = torch.randn(height * columns + 16, width)
        video = {"video_grid_thw": torch.tensor([[3, height, columns]])}
        video["pixel_values_videos"] = torch.randn(3 * height * columns, width)
        kinds = [0, *[1] * n, 0, *[1] * 4, 0, *[2] * 3 * n, 0]
        ids = torch.tensor([[(20, qwen.IMAGE, qwen.VIDEO)[kind] for kind in kinds]])
        given = {"input_ids": ids, "mm_token_type_ids": torch.tensor([kinds]), **image, **video}
        with attached_to(model, name, 0.5) as attached, entering(model) as calls:
            told = logits(model, given)
            plan, tiny = attached.plan(n), attached.plan(4)
            (film,) = attached.passes  # the video is encoded last
            assert (film.tokens, film.images) == (n, (0, 1, 2))
            assert film.features == plan.visual
            if name not in ("projected", "features"):
                assert film.counts == plan.blocks
            wanted = 4 + 4 * plan.visual + tiny.visual
            assert calls[-1]["inputs_embeds"].shape[1] == told.shape[1] == wanted
            features = model.get_image_features(
                image["pixel_values"], image["image_grid_thw"], return_dict=True
            ).pooler_output
            assert [len(rows) for rows in features] == [plan.visual, tiny.visual]
            found = {one.tokens: one for one in attached.passes}
            assert found[n].features == plan.visual
            assert found[4].features == tiny.visual


def matches(part: Tensor, of: Tensor) -> Tensor:
    """Which row of `of [n, c]` each row of `part [m, c]` is, `[m]`: exactly one, to some roundings."""
    far = torch.cdist(part.double(), of.double())  # [m, n]
    near, where = far.min(1)
    assert (near <= 1e-4).all()
    assert ((far <= 1e-3).sum(1) == 1).all()
    return where


def is_text(model: Any, ids: Tensor) -> Tensor:
    return (ids != model.config.image_token_id) & (ids != model.config.video_token_id)


@EACH
@SIDES
@pytest.mark.parametrize("name", ["features", "projected"])
def test_what_is_left_has_the_positions_that_it_had(kind: str, side: str, name: str) -> None:
    """Found by their features, which dropping after the blocks does not change."""
    model = whole(kind)
    given = qwen.batch(model, side)
    with entering(model) as calls:
        logits(model, given)
        with attached_to(model, name) as attached:
            logits(model, given)
            answer(model, given, max_new_tokens=1)
            short = attached.shorten(given)
    bare, *few = ({k: c[k] for k in ("inputs_embeds", "position_ids")} for c in calls)
    assert len(few) == 2
    full_text, text = (is_text(model, some["input_ids"]) for some in (given, short))
    lost = 0
    for call in few:
        places = call["position_ids"]
        assert places.shape[-1] == short["input_ids"].shape[1] < given["input_ids"].shape[1]
        places, before = places[-3:], bare["position_ids"][-3:]
        for row in range(len(text)):
            real, full_real = (s["attention_mask"][row].bool() for s in (short, given))
            # Words come in their order, each with its position.
            here, there = real & text[row], full_real & full_text[row]
            assert torch.equal(places[:, row, here], before[:, row, there])
            here, there = real & ~text[row], full_real & ~full_text[row]
            if not here.any():
                continue
            lost += int(there.sum() - here.sum())
            index = matches(call["inputs_embeds"][row, here], bare["inputs_embeds"][row, there])
            assert (index.diff() > 0).all()
            assert torch.equal(places[:, row, here], before[:, row, there][:, index])
    assert lost > 0


@EACH
def test_positions_after_merging_are_those_of_the_representatives(kind: str) -> None:
    model = whole(kind)
    given = qwen.batch(model)
    with entering(model) as calls:
        logits(model, given)
        with attached_to(model, "evoprune", trace=True) as attached:
            records = list(recorded(model, attached, given))
    before, after = (call["position_ids"][-3:] for call in calls)
    ids = given["input_ids"]
    left = torch.ones_like(ids, dtype=torch.bool)
    for token, kept in zip(
        (model.config.image_token_id, model.config.video_token_id), records, strict=True
    ):
        left[ids == token] = kept
    for row in range(len(ids)):
        there = left[row] & given["attention_mask"][row].bool()
        assert torch.equal(after[:, row, -int(there.sum()) :], before[:, row, there])


def recorded(model: Any, attached: Any, given: Any) -> Iterator[Tensor]:
    """Of the images, and of the videos, which groups are the representative of what is left."""
    found: list[Tensor] = []

    def hook(*_: Any) -> None:
        units: dict[int, tuple[int, TokenMap]] = {}
        for one in attached.passes:
            for i, unit in enumerate(one.images):
                units[unit] = (i, one.record)
        masks = [torch.zeros(units[u][1].tokens, dtype=torch.bool) for u in sorted(units)]
        for unit, mask in enumerate(masks):
            i, plan = units[unit]
            mask[plan.keep[i]] = True
        found.append(torch.cat(masks))

    handle = model.model.visual.register_forward_hook(hook)
    logits(model, given)
    handle.remove()
    return iter(found)


@EACH
@RECIPES
def test_each_row_of_a_batch_gets_what_it_gets_alone(kind: str, name: str) -> None:
    model = whole(kind)
    _, flower, tall, wide, *_ = qwen.photos()
    prompts = ["see <image> and <image> .", "what is <image> ?", "hat near <image> and <image> <s>"]
    images = [[tall, flower], [wide], [flower, tall]]
    for side in ("left", "right"):
        given = qwen.inputs(
            model, prompts, [image for mine in images for image in mine], padding_side=side
        )
        with attached_to(model, name) as attached:
            together = logits(model, given)
            short = attached.shorten(given)
            for row, (prompt, mine) in enumerate(zip(prompts, images, strict=True)):
                alone = logits(model, qwen.inputs(model, prompt, mine))[0]
                there = short["attention_mask"][row].bool()
                assert gap(together[row, there], alone) <= 1e-4


# --- decoding ---


@PAIRS
@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_with_the_cache_is_reading_all_again(kind: str, name: str, beams: int) -> None:
    model = whole(kind)
    given = qwen.batch(model)
    n = given["input_ids"].shape[1]
    with attached_to(model, name):
        out = said(model, given, num_beams=beams, output_scores=beams > 1)
        assert torch.equal(out.sequences[:, :n], given["input_ids"])
        for k in range(NEW) if beams == 1 else []:
            again = logits(model, moved(given, out.sequences[:, n : n + k]))[:, -1]
            assert gap(again, out.logits[k]) <= 1e-4
        if beams > 1:  # what was found is as likely as it was said to be
            told = logits(model, moved(given, out.sequences[:, n:]))[:, -NEW - 1 : -1].log_softmax(
                -1
            )
            mine = told.gather(-1, out.sequences[:, n:, None]).sum((1, 2)) / NEW
            assert gap(mine, out.sequences_scores) <= 1e-4


@EACH
@pytest.mark.parametrize(("mask", "places"), [(True, True), (False, True), (False, False)])
def test_a_loop_by_hand(kind: str, mask: bool, places: bool) -> None:
    """In the caller's own coordinates: masks and positions are those of the whole prompt.

    With a mask the bare model wants positions, too.
    """
    model = whole(kind)
    given = dict(
        qwen.batch(model) if mask else qwen.inputs(model, "see <image> .", qwen.photos()[1:2])
    )
    if not mask:
        given.pop("attention_mask")
    with entering(model) as calls:
        logits(model, given)
    positions = calls[0]["position_ids"][-3:]
    following = positions[..., -1:] + 1
    own: dict[str, Any] = {"position_ids": positions} if places else {}
    with attached_to(model, "evoprune"), torch.no_grad(), entering(model) as calls:
        expected = said(model, given)
        del calls[:]
        out = model(**given, **own, use_cache=True)
        assert gap(out.logits[:, -1], expected.logits[0]) <= 1e-4
        new, known = (
            expected.sequences[:, given["input_ids"].shape[1] :],
            given.get("attention_mask"),
        )
        for k in range(NEW - 1):
            more: dict[str, Any] = {}
            if known is not None:
                known = torch.cat([known, torch.ones_like(known[:, :1])], 1)
                more["attention_mask"] = known
            if places:
                more["position_ids"] = following + k
            out = model(input_ids=new[:, k : k + 1], **{CACHE: cache_of(out)}, **more)
            assert gap(out.logits[:, -1], expected.logits[k + 1]) <= 1e-4
            assert torch.equal(calls[-1]["position_ids"][-3:], following + k)


@EACH
@pytest.mark.parametrize("name", ["evoprune", "projected"])
def test_a_conversation_goes_on_with_its_cache(kind: str, name: str) -> None:
    """Three turns, a new image in the second, against one prompt of all that was said."""
    model = whole(kind)
    _, flower, tall, *_ = qwen.photos()
    first = qwen.inputs(model, "see <image> there", [flower])
    second = qwen.inputs(model, "and <image> ?", [tall])
    third = qwen.inputs(model, "is it the same ?")
    both = qwen.inputs(model, "<image> and <image>", [flower, tall])
    with attached_to(model, name):
        one = said(model, first)
        by_hand = copy.deepcopy(cache_of(one))
        logits(model, third)  # a second call in between, of another conversation
        ids = torch.cat([one.sequences, second["input_ids"]], 1)
        given = {**second, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with pytest.raises(BadArgumentError, match=r"mm_token_type_ids of shape .* for all tokens"):
            said(model, given, **{CACHE: copy.deepcopy(cache_of(one))})
        given["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
        two = said(model, given, **{CACHES[0]: cache_of(one)})
        assert torch.equal(two.sequences[:, : ids.shape[1]], ids)
        # The same by hand; the answer's last token is in no cache yet.
        new = {k: v for k, v in second.items() if k != "attention_mask"}
        new["input_ids"] = ids[:, -second["input_ids"].shape[1] - 1 :]
        new["mm_token_type_ids"] = F.pad(second["mm_token_type_ids"], (1, 0))
        told = logits(model, new, **{CACHE: by_hand})
        assert gap(told[:, -1], two.logits[0]) <= 1e-4
        answer(model, first)
        ids = torch.cat([two.sequences, third["input_ids"]], 1)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        three = said(model, given, **{CACHES[1]: cache_of(two)})
        assert torch.equal(three.sequences[:, : ids.shape[1]], ids)
        again = {k: both[k] for k in ("pixel_values", "image_grid_thw")}
        again |= {**given, "mm_token_type_ids": (ids == model.config.image_token_id).long()}
        at_once = said(model, again)
        assert gap(torch.stack(three.logits), torch.stack(at_once.logits)) <= 1e-4
        assert torch.equal(three.sequences, at_once.sequences)


@EACH
@pytest.mark.parametrize("whole_mask", [True, False])
def test_without_types_positions_are_plain(kind: str, whole_mask: bool) -> None:
    """As in the bare model, which then counts: here, the tokens of the caller's prompt."""
    model = whole(kind)
    given = dict(qwen.batch(model, "right"))
    given.pop("mm_token_type_ids")
    if not whole_mask:
        given.pop("attention_mask")
    with attached_to(model, "features"), entering(model) as calls:
        logits(model, given)
    (call,) = calls
    places = call["position_ids"][-3:]
    assert (places[0] == places[1]).all()
    assert (places[0] == places[2]).all()
    n = given["input_ids"].shape[1]
    if not whole_mask:
        assert (places.max(-1).values <= n - 1).all()


# --- other ways of calling ---


@PAIRS
@SIDES
def test_shortened_inputs_give_the_same(kind: str, side: str, name: str) -> None:
    model = whole(kind)
    given = qwen.batch(model, side)
    with attached_to(model, name) as attached:
        short = attached.shorten(given)
        assert type(short) is type(given)
        assert short["input_ids"].shape[1] < given["input_ids"].shape[1]
        assert short["mm_token_type_ids"].shape == short["input_ids"].shape
        told = logits(model, given)
        assert gap(logits(model, short), told) <= 1e-5
        if side == "left":
            assert torch.equal(answer(model, short), answer(model, given))


@EACH
@SIDES
def test_labels(kind: str, side: str) -> None:
    model = whole(kind)
    given = qwen.batch(model, side)
    ids = given["input_ids"]
    labels = ids.masked_fill(~is_text(model, ids) | (given["attention_mask"] == 0), -100)
    with attached_to(model, "evoprune") as attached:
        out = model(**given, labels=labels)
        short = attached.shorten({**given, "labels": labels})
        wanted = short["labels"]
        assert int((wanted != -100).sum()) == int((labels != -100).sum())
        told = logits(model, {k: v for k, v in short.items() if k != "labels"})
        loss = F.cross_entropy(
            told[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100
        )
        assert gap(out.loss, loss) <= 1e-4
        out.loss.backward()
    grad = model.model.visual.blocks[0].attn.qkv.weight.grad
    assert grad is not None
    assert float(grad.abs().max()) > 0
    model.zero_grad(set_to_none=True)


@EACH
def test_the_callers_positions_are_those_that_are_made(kind: str) -> None:
    model = whole(kind)
    for side in ("left", "right"):
        given = qwen.batch(model, side)
        with entering(model) as calls:
            logits(model, given)
        with attached_to(model, "evoprune"):
            told = logits(model, given)
            same = logits(model, {**given, "position_ids": calls[0]["position_ids"]})
            assert real_gap(same[:, -8:], told[:, -8:], given["attention_mask"][:, -8:]) <= 1e-5


@EACH
def test_a_model_without_its_head(kind: str) -> None:
    model = whole(kind)
    given = qwen.batch(model)
    with attached_to(model, "evoprune"):
        told = logits(model, given)
    with attached_to(model.model, "evoprune") as attached:
        with torch.no_grad():
            hidden = model.model(**given).last_hidden_state
        assert gap(model.lm_head(hidden), told) <= 1e-5
        assert len(attached.passes) == 1
    assert not remains(model)


# --- bad calls ---


def _bad(kind: str) -> Sequence[tuple[str, Any, str]]:
    model = whole(kind)
    given = qwen.batch(model)
    return [
        ("input_ids", given["input_ids"][:, 8:], r"have \d+ placeholders"),
        ("image_grid_thw", None, "pixel_values without image_grid_thw"),
        ("video_grid_thw", None, "pixel_values_videos without video_grid_thw"),
        ("pixel_values", given["pixel_values"][:-4], "patches were passed, but images"),
        ("input_ids", None, "no input_ids"),
    ]


@EACH
@pytest.mark.parametrize("number", range(5))
def test_bad_calls_say_what_is_wrong(kind: str, number: int) -> None:
    model = whole(kind)
    given = qwen.batch(model)
    told = logits(model, given)
    name, value, message = _bad(kind)[number]
    wrong = {**given, name: value}
    if name == "input_ids" and value is not None:
        wrong |= {key: given[key][:, 8:] for key in ("attention_mask", "mm_token_type_ids")}
        wrong["input_ids"] = value.masked_fill(value == model.config.image_token_id, 20)
    with attached_to(model, "evoprune") as attached:
        short = logits(model, given)
        for call in (model, model.generate):
            with pytest.raises((AttachError, BadArgumentError), match=message):
                call(**wrong)
        assert torch.equal(logits(model, given), short)
        assert len(attached.passes) == 1
    assert torch.equal(logits(model, given), told)


@EACH
@pytest.mark.parametrize("name", ["fastervlm", "visionzip"])
def test_without_a_class_token_it_says_what_there_is(kind: str, name: str) -> None:
    model = whole(kind)
    with pytest.raises(
        MissingEvidenceError, match=r"ReceivedAttention\(\) in place of CLSAttention"
    ):
        tokenzoo.build(name).attach(model)
    assert not remains(model)


@EACH
def test_images_of_several_sizes_are_told_apart(kind: str) -> None:
    model = whole(kind)
    given = qwen.inputs(model, "<image> and <image>", qwen.photos()[1:3])
    with attached_to(model, "evoprune") as attached:
        logits(model, given)
        assert len(attached.passes) == 2
        with pytest.raises(AttachError, match=r"images of 2 grids .* attached\.passes"):
            _ = attached.counts
        assert "last pass" in attached.summary(40)
        assert ends(given).shape == (1,)
