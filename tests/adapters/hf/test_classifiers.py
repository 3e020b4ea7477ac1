"""The models and processors that other tests build on are sound: nothing in them is degenerate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.adapters.hf import models as hf
from tests.adapters.models import gap, one_thread  # noqa: F401

LLAVAS = {make.__name__: make for make in (hf.llava, hf.llava_next, hf.llava_onevision)}
TEMPLE, FLOWER, TALL, WIDE, SMALL, *_ = hf.photos()

ONE = "user: <image> what is this ? assistant:"
TWO = "user: <image> and <image> what is different ? assistant:"
NONE = "user: is the sky blue ? assistant:"
SEEN = "user: <video> what is this ? assistant:"
BOTH = "user: <image> and <video> is this the same ? assistant:"


@dataclass(frozen=True)
class Case:
    """Prompts with what they show; `videos` are for LLaVA-OneVision alone."""

    prompts: tuple[str, ...]
    images: tuple[tuple[Any, ...], ...] | None = None
    videos: tuple[Any, ...] | None = None


CASES = {
    "one image": Case((ONE,), ((TEMPLE,),)),
    "two images in a prompt": Case((TWO,), ((TEMPLE, WIDE),)),
    "a padded batch": Case((ONE, TWO, ONE), ((TALL,), (FLOWER, SMALL), (WIDE,))),
    "a text-only row": Case((NONE, ONE), ((), (TEMPLE,))),
    "text only": Case((NONE, NONE), ((), ())),
    "a video": Case((SEEN,), None, (hf.video(3),)),
    "image and video": Case((BOTH,), ((TALL,),), (hf.video(2),)),
    "all": Case(
        (ONE, NONE, SEEN, BOTH), ((TEMPLE,), (), (), (WIDE,)), (hf.video(2), hf.video(2, of=1))
    ),
}
PAIRS = [
    (kind, case)
    for kind in LLAVAS
    for case, given in CASES.items()
    if given.videos is None or kind == "llava_onevision"
]


@pytest.fixture(scope="module", params=LLAVAS)
def whole(request: pytest.FixtureRequest) -> Any:
    return LLAVAS[request.param]()


def made(model: Any, case: str, side: str = "left") -> Any:
    given = CASES[case]
    return hf.inputs(model, given.prompts, given.images, given.videos, padding_side=side)


# --- towers ---


@pytest.mark.parametrize("name", hf.TOWERS)
def test_a_tower_answers_and_is_always_the_same(name: str) -> None:
    model, again = hf.tower(name), hf.tower(name)
    for (key, one), two in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), key
    assert not model.training
    assert model.dtype is torch.float32
    with torch.no_grad():
        said = model(**hf.pixels(model, 3))
        last = hf.tower(name, num_hidden_layers=4)(**hf.pixels(model, 3)).last_hidden_state
    prefix = {"siglip": 0, "siglip2": 0, "dinov2_with_registers": 4, "dinov3_vit": 4}.get(name, 1)
    assert said.last_hidden_state.shape == (3, prefix + 64, 48)
    assert said.pooler_output.shape == (3, 48)
    assert gap(last, said.last_hidden_state) > 0.1  # the last block is there, and it matters


@pytest.mark.parametrize("name", hf.TOWERS)
def test_attention_is_far_from_uniform_and_blocks_change_their_tokens(name: str) -> None:
    model = hf.tower(name, attn_implementation="eager")
    with torch.no_grad():
        said = model(**hf.pixels(model), output_attentions=True, output_hidden_states=True)
    for map_ in said.attentions:  # [b, h, n, n]
        entropy = -(map_ * map_.clamp_min(1e-30).log()).sum(-1)
        assert 2 < entropy.exp().mean() < 0.6 * map_.shape[-1]  # tokens that a token looks at
    for before, after in pairwise(said.hidden_states):
        assert (after - before).norm() > 0.2 * before.norm()


def test_a_tower_takes_options() -> None:
    model = hf.tower("clip", patch_size=14, attn_implementation="eager")
    assert model(**hf.pixels(model, 1)).last_hidden_state.shape == (1, 17, 48)
    assert model.config._attn_implementation == "eager"


# --- whole models ---


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "case"), PAIRS)
def test_every_prompt_runs(kind: str, case: str, side: str) -> None:
    model = LLAVAS[kind]()
    given = made(model, case, side)
    ids = given["input_ids"]
    with torch.no_grad():
        logits = model(**given).logits
    assert logits.shape == (*ids.shape, len(hf.WORDS))
    assert logits.isfinite().all()
    if (
        len(ids) > 1 and case != "text only"
    ):  # such a batch is padded, on the side that was asked for
        edge = 0 if side == "left" else -1
        assert (given["attention_mask"][:, edge] == 0).any()
        assert (given["attention_mask"][:, -1 - edge] == 1).all()
    if side == "left":
        answer = model.generate(**given, max_new_tokens=3)
        assert answer.shape == (len(ids), ids.shape[1] + 3)
        assert (
            answer[:, ids.shape[1] :] >= len(hf.SPECIAL)
        ).all()  # words, no placeholder and no end


def test_no_token_ends_an_answer(whole: Any) -> None:
    assert whole.generation_config.eos_token_id is None
    assert whole.generation_config.pad_token_id == hf.PAD


def test_the_attention_of_the_language_model_is_far_from_uniform(whole: Any) -> None:
    whole.set_attn_implementation("eager")
    given = made(whole, "one image")
    with torch.no_grad():
        maps = whole(**given, output_attentions=True).attentions  # each [b, h, n, n]
    whole.set_attn_implementation("sdpa")
    assert len(maps) == 4
    shown = given["input_ids"][0] == hf.IMAGE
    for map_ in maps:
        last = map_[0, :, -1]  # [h, n]: what the last token of the prompt looks at
        entropy = -(last * last.clamp_min(1e-30).log()).sum(-1)
        assert 2 < entropy.exp().mean() < 0.6 * len(shown)
        assert last[:, shown].sum(-1).mean() > 0.2  # much of it is the image


def test_a_placeholder_too_few_is_an_error_of_the_model(whole: Any) -> None:
    given = dict(made(whole, "one image"))
    at = int((given["input_ids"][0] == hf.IMAGE).nonzero()[0])
    for key in ("input_ids", "attention_mask"):
        given[key] = torch.cat([given[key][:, :at], given[key][:, at + 1 :]], dim=1)
    with pytest.raises(ValueError, match="do not match"):
        whole(**given)


def test_a_padded_row_is_the_row_alone(whole: Any) -> None:
    case = CASES["a padded batch"]
    batch = made(whole, "a padded batch")
    with torch.no_grad():
        together = whole(**batch).logits
        for row, (prompt, images) in enumerate(zip(case.prompts, case.images or (), strict=True)):
            alone = whole(**hf.inputs(whole, prompt, [images])).logits[0]
            assert gap(together[row, -len(alone) :], alone) < 1e-4


def test_answers_depend_on_the_photograph_and_are_no_ties(whole: Any) -> None:
    answers, gaps = set(), []
    for photo in hf.photos():
        given = hf.inputs(whole, ONE, [[photo]])
        said = whole.generate(
            **given, max_new_tokens=8, return_dict_in_generate=True, output_logits=True
        )
        answers.add(tuple(said.sequences[0, -8:].tolist()))
        two = torch.stack(said.logits, dim=1)[0].topk(2).values  # [8, 2]
        gaps += (two[:, 0] - two[:, 1]).tolist()
    assert len(answers) == len(hf.photos())
    assert np.mean(np.array(gaps) > 1e-2) > 0.9


def test_answers_depend_on_the_video() -> None:
    model = hf.llava_onevision()
    answers = [
        model.generate(**hf.inputs(model, SEEN, videos=[hf.video(3, of)]), max_new_tokens=8)
        for of in (0, 1)
    ]
    assert not torch.equal(*answers)


# --- what the processors do ---


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


def test_crops_of_every_grid_are_there() -> None:
    model = hf.llava_next()
    counts = [len(hf.inputs(model, ONE, [[photo]])["pixel_values"][0]) for photo in hf.photos()]
    assert counts == [5, 5, 4, 4, 3, 4, 4, 3]


def test_a_video_moves() -> None:
    film = hf.video(5)
    assert film.shape == (5, 240, 320, 3)
    assert film.dtype == np.uint8
    for frame, after in pairwise(film):
        assert (frame[:, 80:] == after[:, :-80]).all()  # a quarter of the window, every time
        assert (frame != after).mean() > 0.5


def test_words_are_told_apart() -> None:
    tokenizer = hf.processor(hf.llava()).tokenizer
    said = tokenizer("user: what colour has the dog ?").input_ids
    assert said[0] == hf.BOS
    assert tokenizer.unk_token_id not in said
    assert tokenizer.decode(said, skip_special_tokens=True) == "user : what colour has the dog ?"
    for text in (ONE, TWO, NONE, SEEN, BOTH):
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids
