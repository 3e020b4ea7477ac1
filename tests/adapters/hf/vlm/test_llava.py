"""What LLaVA, LLaVA-NeXT and LLaVA-OneVision have of their own; the rest: tests/conformance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import (
    KINDS,
    ONE,
    PADDED,
    SINGLE,
    TALL,
    TEMPLE,
    TWO,
    WIDE,
    Batch,
    answer,
    entering,
    logits,
    real_gap,
    remains,
    whole,
)
from tests.adapters.models import gap
from tests.conformance.chats import method

# Images of a prompt, and the rows and columns of crops that each is cut into.
SHOWS = {
    "temple": ((TEMPLE,), [(2, 2)]),
    "tall": ((TALL,), [(3, 1)]),
    "wide": ((WIDE,), [(1, 3)]),
    "two": ((TEMPLE, TALL), [(2, 2), (3, 1)]),
}


def packed(crops: Tensor, columns: int, newline: Tensor | None) -> Tensor:
    """The tokens of an image: of its base crop, and of each row of crops, with a newline."""
    base, others = crops[0], crops[1:]
    if newline is None:
        return base
    if not len(others):
        return torch.cat([base, newline[None]])
    rows = others.split(columns)
    return torch.cat([base, *(part for row in rows for part in (*row, newline[None]))])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize("name", ["evoprune", "everywhere"])
def test_crops_lie_in_the_prompt_base_first_then_row_by_row(
    kind: str, show: str, name: str
) -> None:
    """What leaves the projector, with a newline after each row of crops, among the bare model's words."""
    model, (images, grids) = whole(kind), SHOWS[show]
    given = Batch((ONE if len(images) == 1 else TWO,), (images,)).given(model)
    projected: list[Tensor] = []
    with method(name, 21).attach(model) as attached, entering(model) as calls:
        handle = model.model.multi_modal_projector.register_forward_hook(
            lambda module, args, out: projected.append(out)
        )
        logits(model, given)
        handle.remove()
        assert projected[0].shape[1] == attached.plan().visual == (25 if name != "evoprune" else 21)
    # OneVision cuts no image into crops that is not alone in its prompt.
    cut = kind == "llava_next" or (kind == "llava_onevision" and len(images) == 1)
    counts = [1 + rows * columns * cut for rows, columns in grids]
    newline = getattr(model.model, "image_newline", None)
    shown = [
        packed(crops, columns, newline)
        for crops, (_, columns) in zip(projected[0].split(counts), grids, strict=True)
    ]
    ids = given["input_ids"][0]
    words = model.get_input_embeddings()(ids)
    begins = [i for i in range(len(ids)) if ids[i] == hf.IMAGE != ids[i - 1]]
    parts = [
        shown[begins.index(i)] if i in begins else words[i : i + 1]
        for i in range(len(ids))
        if i in begins or ids[i] != hf.IMAGE
    ]
    assert torch.equal(calls[0]["inputs_embeds"][0], torch.cat(parts))


def test_a_video_lies_in_the_prompt_frame_by_frame() -> None:
    """Its frames are not pooled again, and a newline ends them."""
    model = whole("llava_onevision")
    given = hf.inputs(model, "the <video> ?", videos=[hf.video(3)])
    projected: list[Tensor] = []
    handle = model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, out: projected.append(out)
    )
    with tokenzoo.build("evoprune", keep=21).attach(model), entering(model) as calls:
        logits(model, given)
    handle.remove()
    assert projected[0].shape[:2] == (3, 21)
    film = torch.cat([projected[0].flatten(0, 1), model.model.image_newline[None]])
    assert torch.equal(calls[0]["inputs_embeds"][0, 2:-1], film)


@pytest.mark.parametrize(("layer", "blocks"), [(-2, 5), ([-2], 5), (-1, 6), (4, 4)])
def test_blocks_that_no_one_reads_are_not_planned_on(layer: Any, blocks: int) -> None:
    model = hf.llava(vision_feature_layer=layer)
    given = SINGLE.given(model)
    bare = logits(model, given)
    with tokenzoo.build("evoprune", keep=1.0).attach(model):
        assert gap(logits(model, given), bare) <= 1e-4
    half = tokenzoo.build("evoprune", keep=0.5)
    with half.attach(model) as attached:
        assert logits(model, given).shape[1] == bare.shape[1] - 32
        assert attached.counts == attached.plan().blocks == half.plan(64, blocks).blocks


@pytest.mark.parametrize(("name", "visual"), [("divprune", 16), ("fastv", 64)])
def test_several_hidden_states_are_reduced_after_the_projector_only(name: str, visual: int) -> None:
    model = hf.llava(vision_feature_layer=[-3, -2])
    with tokenzoo.build(name, keep=16).attach(model) as attached:
        assert logits(model, SINGLE.given(model)).isfinite().all()
        assert attached.plan().visual == visual
    assert remains(model) == []


def test_a_class_token_that_is_handed_on_is_one_more() -> None:
    model = hf.llava(vision_feature_select_strategy="full")
    given = PADDED.given(model)
    bare = logits(model, given)
    assert int((given["input_ids"] == hf.IMAGE).sum()) == 3 * 65
    with tokenzoo.build("evoprune", keep=1.0).attach(model):
        assert real_gap(logits(model, given), bare, given["attention_mask"]) <= 1e-4
    with tokenzoo.build("evoprune", keep=21).attach(model) as attached:
        alone = torch.stack([logits(model, row)[0, -1] for row in PADDED.rows(model)])
        assert gap(logits(model, given)[:, -1], alone) <= 1e-4
        assert int((attached.shorten(given)["input_ids"] == hf.IMAGE).sum()) == 3 * (21 + 1)


@pytest.mark.parametrize(
    ("keep", "counts"), [(21, (43, 33, 26, 21)), (0.25, (33, 25, 20, 16))], ids=["count", "share"]
)
def test_events_have_the_names_of_their_stages(keep: Any, counts: tuple[int, ...]) -> None:
    """Up to the projector, tokens are counted with the class token."""
    model, told = whole("llava"), []

    def tell(event: Any) -> None:
        told.append((event.stage, event.block, event.before.x.shape[1], event.after.x.shape[1]))

    block, features, projected, llm = counts
    with method("everywhere", keep).attach(model, on_reduce=tell) as attached:
        answer(model, SINGLE.given(model))
        assert attached.plan().llm == llm
    assert told == [
        ("block", 0, 65, block),
        ("features", 4, block, features),
        ("projected", 4, features, projected),
        ("llm", 2, projected - 1, llm),
    ]
