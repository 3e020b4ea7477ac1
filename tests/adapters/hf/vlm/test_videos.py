"""A step over frames: the language model reads those of the bare model's tokens that are chosen."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import PIL.Image
import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import Batch, answer, entering, logits
from tests.adapters.hf.vlm.over_frames import Change, over_frames
from tests.conformance.chats import CHATS, FILMS, THUMBNAIL, whole
from tokenzoo import Recipe
from tokenzoo.errors import AttachError, BadArgumentError, MissingEvidenceError
from tokenzoo.evidence import Evidence

FRAMES = tuple(PIL.Image.fromarray(frame).resize((56, 56)) for frame in qwen.video(4))
# Videos of different length in one batch, a slice alone, and an image, which is left whole.
TIMED = Batch(
    ("see <video> and <image> .", "is the sky blue ?", "<video> , or <video> ?"),
    ((THUMBNAIL,), (), ()),
    (qwen.video(6), qwen.video(2, of=1), qwen.video(8, of=1)),
)
# Four images of a prompt are a video.
STILLS = Batch(
    ("<image> <image> of <image> and <image> ?", "see <image> , <image> <image> , <image> ."),
    (FRAMES, FRAMES[::-1]),
)
BATCHES = {
    "llava_onevision": FILMS,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), TIMED),
    **dict.fromkeys(("internvl", "llava"), STILLS),
}
if "cosmos3_edge" in CHATS:
    BATCHES["cosmos3_edge"] = TIMED
OPTIONS: dict[str, Any] = {kind: {"frames": 4} for kind in ("internvl", "llava")}
EACH = pytest.mark.parametrize("kind", BATCHES)


def videos(model: Any, given: Any) -> list[tuple[int, Tensor, int]]:
    """Of each video its row, the columns of its frames' tokens, and how many frames it has."""
    config = model.config
    token = getattr(config, "video_token_id", None) or config.image_token_id
    places = (given["input_ids"] == token).nonzero()  # [p, 2]
    if "pixel_values_videos" not in given:
        shapes = [(4, len(places) // 2, 0)] * 2
    elif "video_grid_thw" in given:
        grids: list[list[int]] = given["video_grid_thw"].tolist()
        shapes = [(t, t * h * w // 4, 0) for t, h, w in grids]
    else:  # a newline at the end
        count, frames = given["pixel_values_videos"].shape[:2]
        shapes = [(frames, len(places) // count - 1, 1)] * count
    found: list[tuple[int, Tensor, int]] = []
    for frames, tokens, more in shapes:
        mine, places = places[:tokens], places[tokens + more :]
        found.append((int(mine[0, 0]), mine[:, 1], frames))
    return found


def expected(model: Any, given: Any, x: Tensor) -> list[Tensor]:
    """Of each row, the columns of the caller's prompt that stay when half of each video does."""
    stays = given["attention_mask"] != 0
    for row, columns, frames in videos(model, given):
        tokens = x[row, columns][None]
        if frames == 1:
            continue
        seen = Evidence(tokens, mass=torch.ones(tokens.shape[:2]), frames=frames)
        order = Change().score(seen)[0].argsort(descending=True, stable=True)
        kept = frames * ((len(columns) // frames + 1) // 2)
        stays[row, columns[order[kept:]]] = False
    return [row.nonzero()[:, 0] for row in stays]


def read(model: Any, given: Any) -> dict[str, Tensor]:
    """What the language model reads of each token: features, places, deepstack."""
    with entering(model) as calls:
        logits(model, given)
    told = calls[0]
    found = {"x": told["inputs_embeds"], "mask": told["attention_mask"]}
    if told.get("position_ids") is not None:
        found["positions"] = told["position_ids"].movedim(0, -1)
    deep = told.get("deepstack_visual_embeds")
    if deep is not None:
        where = told["visual_pos_masks"]
        for i, rows in enumerate(deep):
            whole_rows = rows.new_zeros(*where.shape, rows.shape[-1])
            found[f"deep {i}"] = whole_rows.index_put((where,), rows)
    return found


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokens_that_are_chosen_are_read_at_their_places(kind: str, side: str) -> None:
    model = whole(kind)
    given = BATCHES[kind].given(model, side)
    bare = read(model, given)
    with tokenzoo.build(over_frames(0.5)).attach(model, **OPTIONS.get(kind, {})):
        found = read(model, given)
    assert found.keys() == bare.keys()
    kept = expected(model, given, bare["x"])
    assert sum(map(len, kept)) < int(given["attention_mask"].sum())
    for row, columns in enumerate(kept):
        real = found["mask"][row] != 0
        for name in found.keys() - {"mask"}:
            one, other = found[name][row][real], bare[name][row, columns]
            assert one.shape == other.shape
            assert torch.allclose(one, other, atol=1e-5), name


def test_frames_without_tokens_have_no_place_in_a_prompt() -> None:
    """Of a video whose frames are equal only the first is left; a time stands before each slice."""
    model = whole("qwen3_vl")
    still = qwen.video(8)[:1].repeat(8, 0)
    given = Batch(("see <video> .",), ((),), (still,)).given(model)
    frames = int(given["video_grid_thw"][0, 0])
    with tokenzoo.build(over_frames(1)).attach(model) as attached:
        short = attached.shorten(dict(given))
        here = (short["input_ids"][0] == model.config.video_token_id).int()
        assert (int(here.sum()), int(here.diff().clamp_min(0).sum())) == (frames, 1)
        with pytest.raises(BadArgumentError, match="pass the prompt as the processor wrote it"):
            model(**short)


@pytest.mark.parametrize("kind", ["llava", "internvl", "minicpmv4_6"])
def test_where_frames_are_not_known_it_is_refused(kind: str) -> None:
    with pytest.raises(MissingEvidenceError, match=r"needs frames at Stage\.PROJECTED"):
        tokenzoo.build(over_frames(0.5)).attach(whole(kind))


def test_it_is_a_step_after_the_projector() -> None:
    (step,) = over_frames(0.5).steps
    early = Recipe(replace(step, stage=tokenzoo.Stage.FEATURES), keep=0.5)
    with pytest.raises(MissingEvidenceError, match=r"needs frames at Stage\.FEATURES"):
        tokenzoo.build(early).attach(whole("qwen2_vl"))


@EACH
def test_all_of_a_video_is_the_bare_model(kind: str) -> None:
    model = whole(kind)
    given = BATCHES[kind].given(model)
    bare, said = read(model, given), answer(model, given)
    with tokenzoo.build(over_frames(1.0)).attach(model, **OPTIONS.get(kind, {})):
        found = read(model, given)
        assert all(torch.equal(found[name], bare[name]) for name in bare)
        assert torch.equal(answer(model, given), said)


@EACH
def test_rows_are_answered_as_if_they_were_alone(kind: str) -> None:
    """With videos of different length in a batch, whose frames keep different numbers of tokens."""
    model, batch = whole(kind), BATCHES[kind]
    given = batch.given(model)
    with tokenzoo.build(over_frames(0.3)).attach(model, **OPTIONS.get(kind, {})):
        alone = torch.cat([answer(model, row) for row in batch.rows(model)])
        assert torch.equal(answer(model, given), alone)


@pytest.mark.parametrize(
    ("kind", "frames", "text"),
    [
        ("qwen2_vl", 4, "frames=4 of Qwen2VLForConditionalGeneration: it knows its videos itself"),
        ("llava_next", 4, "or cuts images into crops"),
        ("llava", 0, "frames=0"),
    ],
)
def test_images_that_cannot_be_frames(kind: str, frames: int, text: str) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(text)):
        tokenzoo.build(over_frames(0.5)).attach(whole(kind), frames=frames)


def test_images_that_are_no_whole_videos() -> None:
    model = whole("llava")
    given = Batch(("<image> <image> of <image> ?",), (FRAMES[:3],)).given(model)
    with tokenzoo.build(over_frames(0.5)).attach(model, frames=4) as attached:
        with pytest.raises(AttachError, match="pass whole videos"):
            model(**given)
        with attached.paused():
            logits(model, given)
