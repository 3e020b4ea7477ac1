"""Whole Qwen2-VL and Qwen2.5-VL models: sizes, positions and videos; the rest: tests/conformance."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import CACHE, NEW, answer, cache_of, entering, logits
from tests.adapters.models import gap
from tests.conformance.chats import THUMBNAIL, moved, said, whole
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import Bipartite, Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.schedules import Mean, Once
from tokenzoo.scorers import Random, Similarity

EACH = pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
ODD = (
    *((2, 2), (2, 6), (6, 2), (4, 10), (10, 14), (14, 6)),
    *((2, 26), (8, 8), (6, 18), (22, 4), (10, 10)),
)
"""Rows and columns of patches: in windows of 6 x 6 patches most of them are ragged."""

_, FLOWER, TALL, *_ = qwen.photos()


def attached_to(model: Any, name: str, keep: int | float = 0.4, **options: Any) -> Any:
    """With a recipe of the zoo, or one that drops at a stage, or that merges and drops."""
    drop = SelectAssign(TopK(Random()), Drop())
    after = {
        stage: Step(stage, Once(), drop, Identity()) for stage in (Stage.FEATURES, Stage.PROJECTED)
    }
    merge = Step(Stage.BLOCK, Mean(), Bipartite(Similarity("keys")), WeightedMean())
    recipes = {
        "features": [after[Stage.FEATURES]],
        "projected": [after[Stage.PROJECTED]],
        "two stages": [merge, after[Stage.PROJECTED]],
    }
    asked = Recipe(*recipes[name], keep=keep) if name in recipes else name
    own = {} if name in recipes else {"keep": keep}
    return tokenzoo.build(asked, **own).attach(model, **options)


@EACH
@pytest.mark.parametrize("name", ["evoprune", "features", "two stages"])
def test_as_many_tokens_as_planned(kind: str, name: str) -> None:
    """Images of odd sizes, and a video of three slices, in one prompt."""
    model = whole(kind)
    width = model.config.vision_config.patch_size**2 * 6
    sizes = [height * columns // 4 for height, columns in ODD]
    kinds = [0]
    for n in sizes:
        kinds += [*[1] * n, 0]
    kinds += [*[2] * 3 * 15, 0]
    given = {
        "input_ids": torch.tensor([[(20, qwen.IMAGE, qwen.VIDEO)[kind] for kind in kinds]]),
        "mm_token_type_ids": torch.tensor([kinds]),
        "pixel_values": torch.randn(4 * sum(sizes), width),
        "image_grid_thw": torch.tensor([(1, *size) for size in ODD]),
        "pixel_values_videos": torch.randn(4 * 45, width),
        "video_grid_thw": torch.tensor([[3, 6, 10]]),
    }
    with attached_to(model, name, 0.5) as attached, entering(model) as calls:
        found = logits(model, given)
        (film,) = attached.passes  # the video is encoded last
        plan = attached.plan(15)
        assert (film.tokens, film.images, film.features) == (15, (0, 1, 2), plan.visual)
        assert name == "features" or film.counts == plan.blocks
        planned = [attached.plan(n).visual for n in sizes]
        wanted = len(ODD) + 2 + sum(planned) + 3 * plan.visual
        assert calls[0]["inputs_embeds"].shape[1] == found.shape[1] == wanted
        features = model.get_image_features(
            given["pixel_values"], given["image_grid_thw"], return_dict=True
        ).pooler_output
        assert [len(rows) for rows in features] == planned


def remaining(model: Any, attached: Any, given: Any) -> Tensor:
    """Which columns of a prompt `[b, n]` are words, or what is left of its images and videos."""
    kept: list[Tensor] = []

    def note(*_: Any) -> None:
        units: dict[int, Tensor] = {}
        for one in attached.passes:
            for unit, keep in zip(one.images, one.record.keep, strict=True):
                units[unit] = torch.zeros(one.record.tokens, dtype=torch.bool)
                units[unit][keep] = True
        kept.append(torch.cat([units[unit] for unit in sorted(units)]))

    handle = model.model.visual.register_forward_hook(note)
    logits(model, given)
    handle.remove()
    ids = given["input_ids"]
    left = given["attention_mask"].bool()
    for token, mine in zip((qwen.IMAGE, qwen.VIDEO), kept, strict=True):
        left[ids == token] = mine
    return left


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["features", "projected", "evoprune", "two stages"])
def test_what_is_left_has_the_positions_that_it_had(kind: str, side: str, name: str) -> None:
    """In `forward` and in `generate`; and what is only chosen from is what it was."""
    model = whole(kind)
    given = dict(qwen.batch(model, side))
    if kind == "qwen2_5_vl":  # which counts time in seconds
        given["second_per_grid_ts"] = torch.tensor([0.2])
    with entering(model) as calls:
        logits(model, given)
        with attached_to(model, name, trace=True) as attached:
            left = remaining(model, attached, given)
            answer(model, given, max_new_tokens=1)
    bare, *few = calls
    assert len(few) == 2
    for call in few:
        for row, there in enumerate(left):
            m = int(there.sum())
            mine = slice(-m, None) if side == "left" else slice(0, m)
            places, before = call["position_ids"][-3:, row], bare["position_ids"][-3:, row]
            assert torch.equal(places[:, mine], before[:, there])
            assert row == 2 or m < int(given["attention_mask"][row].sum())
            if name in ("features", "projected"):
                x, of = call["inputs_embeds"][row, mine], bare["inputs_embeds"][row, there]
                assert gap(x, of) <= 1e-4


@EACH
@pytest.mark.parametrize("masked", [True, False])
def test_without_types_positions_are_plain(kind: str, masked: bool) -> None:
    """As in the bare model, which then counts: here, the tokens of the caller's prompt."""
    model = whole(kind)
    given = dict(qwen.batch(model, "right"))
    for name in ("mm_token_type_ids", *(() if masked else ("attention_mask",))):
        del given[name]
    with attached_to(model, "features"), entering(model) as calls:
        logits(model, given)
    places = calls[0]["position_ids"][-3:]
    assert (places == places[0]).all()
    assert masked or int(places.max()) < given["input_ids"].shape[1]


@EACH
def test_positions_of_the_text_may_come_with_those_of_each_token(kind: str) -> None:
    """As `generate` hands them on, `[4, b, n]`."""
    model = whole(kind)
    given = qwen.batch(model)
    with entering(model) as calls:
        logits(model, given)
    counted = (given["attention_mask"].cumsum(-1) - 1).clamp_min(0)[None]
    places = torch.cat([counted, calls[0]["position_ids"][-3:]])
    with attached_to(model, "evoprune"):
        four = logits(model, given, position_ids=places)
        assert gap(four[:, -1], logits(model, given)[:, -1]) <= 1e-4


@EACH
@pytest.mark.parametrize("image", [FLOWER, THUMBNAIL, None], ids=["image", "thumbnail", "words"])
def test_a_video_comes_in_the_second_turn(kind: str, image: Any) -> None:
    """After an image that is shortened, one that is left whole, or words alone."""
    model, words = whole(kind), "the sky" if image is None else "<image>"
    first = qwen.inputs(model, f"what is {words} ?", None if image is None else [image])
    second = qwen.inputs(model, "see <video> now", videos=[qwen.video(4)])
    with attached_to(model, "two stages", 20):
        one = said(model, first)
        new = torch.cat([one.sequences[:, -NEW:], second["input_ids"]], 1)
        every = moved({**second, **first}, new)
        every["mm_token_type_ids"][every["input_ids"] == qwen.VIDEO] = 2
        given = {k: every[k] for k in every if k not in ("pixel_values", "image_grid_thw")}
        two = said(model, given, **{CACHE: cache_of(one)})
        at_once = said(model, every)
        assert gap(torch.stack(two.logits), torch.stack(at_once.logits)) <= 1e-4
        # By hand after it: the answer's last token is in no cache yet.
        expected = logits(model, moved(every, two.sequences[:, -NEW:]))[:, -1]
        said(model, given, **{CACHE: cache_of(said(model, first))})
        word = {"input_ids": two.sequences[:, -1:]}
        assert gap(logits(model, word, **{CACHE: cache_of(two)})[:, -1], expected) <= 1e-4


@EACH
def test_a_new_image_by_hand_after_a_cache(kind: str) -> None:
    """Types of the new tokens alone go with their image; `generate` wants those of the whole prompt."""
    model = whole(kind)
    first = qwen.inputs(model, "see <image> there", [FLOWER])
    second = dict(qwen.inputs(model, "and <image> ?", [TALL]))
    with attached_to(model, "projected"):
        one = said(model, first)
        by_hand = copy.deepcopy(cache_of(one))
        given = moved(first, torch.cat([one.sequences[:, -NEW:], second["input_ids"]], 1))
        n = given["input_ids"].shape[1]
        types = {"mm_token_type_ids": (given["input_ids"] == qwen.IMAGE).long()}
        given = {**second, "input_ids": given["input_ids"], "attention_mask": torch.ones(1, n)}
        with pytest.raises(BadArgumentError, match="mm_token_type_ids of shape"):
            said(model, given, **{CACHE: copy.deepcopy(by_hand)})
        two = said(model, {**given, **types}, **{CACHE: cache_of(one)})
        new = second["input_ids"].shape[1] + 1  # the answer's last token is in no cache yet
        del second["attention_mask"]
        second["input_ids"] = given["input_ids"][:, -new:]
        second["mm_token_type_ids"] = types["mm_token_type_ids"][:, -new:]
        assert gap(logits(model, second, **{CACHE: by_hand})[:, -1], two.logits[0]) <= 1e-4


@EACH
def test_a_text_decoded_by_hand_after_detach_is_as_before(kind: str) -> None:
    """The model keeps on itself where the positions of its last prompt go on."""
    model = copy.deepcopy(whole(kind))
    model.model.rope_deltas = None
    text = qwen.inputs(model, "is the sky blue ?")
    word = {"input_ids": text["input_ids"][:, -1:]}

    def by_hand() -> Tensor:
        with torch.no_grad():
            cache = cache_of(model(**text, use_cache=True))
            return logits(model, word, **{CACHE: cache})

    bare = by_hand()
    with attached_to(model, "evoprune"):
        answer(model, qwen.inputs(model, "see <image> .", [FLOWER]))
        assert model.model.rope_deltas is not None  # so that this test could fail
    assert model.model.rope_deltas is None
    assert torch.equal(by_hand(), bare)
