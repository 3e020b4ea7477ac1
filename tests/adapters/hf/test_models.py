"""The models and processors that other tests build on are sound: nothing in them is degenerate."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import (
    FLOWER,
    KINDS,
    ONE,
    PADDED,
    SINGLE,
    TEMPLE,
    TWO,
    Batch,
    answer,
    logits,
    whole,
)
from tests.conformance.chats import FILMS

EACH = pytest.mark.parametrize("kind", KINDS)
SEEN = "user: <video> what is this ?"
NO_IMAGE = Batch((ONE.replace("<image>", ""),) * 2, ((), ()))


def far_from_uniform(map_: torch.Tensor) -> bool:
    """Whether a query looks at more than two tokens, and at fewer than most: `[..., n]`."""
    entropy = -(map_ * map_.clamp_min(1e-30).log()).sum(-1)
    return bool(2 < entropy.exp().mean() < 0.6 * map_.shape[-1])


@pytest.mark.parametrize("name", hf.TOWERS)
def test_a_tower_is_always_the_same_and_every_block_matters(name: str) -> None:
    model, again = hf.tower(name, attn_implementation="eager"), hf.tower(name)
    for one, two in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert (model.training, model.dtype) == (False, torch.float32)
    with torch.no_grad():
        said = model(**hf.pixels(model), output_attentions=True, output_hidden_states=True)
    assert said.last_hidden_state.shape == (2, hf.PREFIX.get(name, 1) + 64, 48)
    if name != "radio":  # it pools nothing
        assert said.pooler_output.shape == (2, 48)
    assert all(map(far_from_uniform, said.attentions))
    for before, after in pairwise(said.hidden_states):
        assert (after - before).norm() > 0.15 * before.norm()


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_prompt_is_answered_in_words(kind: str, side: str) -> None:
    model = whole(kind)
    assert model.generation_config.eos_token_id is None
    assert model.generation_config.pad_token_id == hf.PAD
    for batch in (SINGLE, NO_IMAGE, PADDED, *((FILMS,) if kind == "llava_onevision" else ())):
        given = batch.given(model, side)
        ids, mask = given["input_ids"], given["attention_mask"]
        out = logits(model, given)
        assert out.shape == (*ids.shape, len(hf.WORDS))
        assert out.isfinite().all()
        assert not (ids == hf.SPECIAL.index("<unk>")).any()
        edge = 0 if side == "left" else -1
        assert bool((mask[:, edge] == 0).any()) == (batch in (PADDED, FILMS))
        assert (mask[:, -1 - edge] == 1).all()
        if side == "left":
            assert (answer(model, given) >= len(hf.SPECIAL)).all()  # no placeholder and no end


@EACH
def test_the_attention_of_the_language_model_is_far_from_uniform(kind: str) -> None:
    model = KINDS[kind]()
    model.set_attn_implementation("eager")
    given = SINGLE.given(model)
    with torch.no_grad():
        maps = model(**given, output_attentions=True).attentions  # each [b, h, n, n]
    assert len(maps) == 4
    shown = given["input_ids"][0] == hf.IMAGE
    for map_ in maps:
        last = map_[0, :, -1]  # [h, n]: what the last token of the prompt looks at
        assert far_from_uniform(last)
        assert last[:, shown].sum(-1).mean() > 0.2  # much of it is the image


@EACH
def test_answers_depend_on_what_is_shown_and_are_no_ties(kind: str) -> None:
    model = whole(kind)
    shown = [hf.inputs(model, ONE, [[photo]]) for photo in hf.photos()]
    if kind == "llava_onevision":
        shown += [hf.inputs(model, SEEN, videos=[hf.video(3, of)]) for of in (0, 1)]
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_logits": True}
    said = [model.generate(**given, **options) for given in shown]
    assert len({tuple(one.sequences[0, -8:].tolist()) for one in said}) == len(shown)
    two = torch.stack([torch.stack(one.logits)[:, 0] for one in said]).topk(2).values
    assert ((two[..., 0] - two[..., 1]) > 1e-2).float().mean() > 0.9


def test_the_tokens_of_an_image() -> None:
    def tokens(model: Any, *photos: Any) -> int:
        prompt = ONE if len(photos) == 1 else TWO
        return int((hf.inputs(model, prompt, [photos])["input_ids"] == hf.IMAGE).sum())

    assert tokens(hf.llava(), TEMPLE) == 64
    assert tokens(hf.llava(vision_feature_select_strategy="full"), TEMPLE) == 65
    assert tokens(hf.llava(vision={"patch_size": 14}), TEMPLE) == 16
    # A base crop; 2 x 2 crops of which the letterbox leaves 10 rows of 16, each with a newline.
    assert tokens(hf.llava_next(), TEMPLE) == 64 + 10 * (16 + 1)
    # The same, shrunk to at most twice the tokens of a crop: 8 rows of 14.
    model = hf.llava_onevision()
    assert tokens(model, TEMPLE) == 64 + 8 * (14 + 1)
    assert tokens(model, TEMPLE, FLOWER) == 2 * (64 + 1)  # several images in a prompt: no crops
    video = hf.inputs(model, SEEN, videos=[hf.video(3)])
    assert int((video["input_ids"] == hf.VIDEO).sum()) == 3 * 16 + 1
    model = hf.llava_next()
    crops = [len(hf.inputs(model, ONE, [[photo]])["pixel_values"][0]) for photo in hf.photos()]
    assert crops == [5, 5, 4, 4, 3, 4, 4, 3]


def test_a_video_moves() -> None:
    film = hf.video(5)
    assert (film.shape, film.dtype) == ((5, 240, 320, 3), "uint8")
    for frame, after in pairwise(film):
        assert (frame[:, 80:] == after[:, :-80]).all()  # a quarter of the window, every time
        assert (frame != after).mean() > 0.5
