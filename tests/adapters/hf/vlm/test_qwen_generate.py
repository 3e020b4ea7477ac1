"""Qwen's positions, videos and conversations; other forms of generating: tests/conformance."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import (
    CACHE,
    NEW,
    answer,
    cache_of,
    ends,
    entering,
    logits,
    real_gap,
    remains,
)
from tests.adapters.hf.vlm.test_qwen import EACH, KINDS, attached_to, moved, said, whole
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tests.pairs import paired
from tokenzoo.errors import AttachError

NAMES = ("evoprune", "tome", "uniform", "two stages")
RECIPES = pytest.mark.parametrize("name", NAMES)
PAIRS = paired("kind", KINDS, "name", NAMES)
_, FLOWER, TALL, WIDE, *_ = qwen.photos()


def single(model: Any) -> Any:
    return qwen.inputs(model, "see <image> .", [FLOWER])


# --- positions of what is decoded ---


@EACH
@RECIPES
@pytest.mark.parametrize("beams", [1, 2])
def test_answers_have_the_positions_that_they_have_in_the_bare_model(
    kind: str, name: str, beams: int
) -> None:
    model = whole(kind)
    given = qwen.batch(model)
    with entering(model) as bare:
        answer(model, given, num_beams=beams)
    with attached_to(model, name), entering(model) as calls:
        answer(model, given, num_beams=beams)
    assert len(calls) == len(bare) == NEW
    assert calls[0]["inputs_embeds"].shape[1] < bare[0]["inputs_embeds"].shape[1]
    for call, other in zip(calls[1:], bare[1:], strict=True):
        assert torch.equal(call["position_ids"][-3:], other["position_ids"][-3:])


@pytest.mark.parametrize("name", ["features", "evoprune", "two stages"])
def test_seconds_between_slices_of_a_video_stay(name: str) -> None:
    """Qwen2.5-VL counts time in seconds: those of the caller are what the decoder is told."""
    model = whole("qwen2_5_vl")
    given = qwen.inputs(model, "see <video> now", videos=[qwen.video(6)])
    times: list[Tensor] = []
    for seconds in (0.2, 2.0):
        some = {**given, "second_per_grid_ts": torch.tensor([seconds])}
        with entering(model) as bare:
            answer(model, some)
        with attached_to(model, name), entering(model) as calls:
            answer(model, some)
            logits(model, some)
        ids = given["input_ids"][0] == model.config.video_token_id
        before = bare[0]["position_ids"][-3:, 0]
        after = calls[0]["position_ids"][-3:, 0]
        assert torch.equal(calls[-1]["position_ids"][-3:, 0], after)
        first = int(ids.int().argmax())
        rest = len(ids) - first - int(ids.sum())
        # Every slice keeps as many, each at the time that it had; and the words after them go on.
        slices = before[0, ids].unique()
        kept = after[:, first:-rest]
        assert torch.equal(kept[0].unique(), slices)
        assert len(set((kept[0][:, None] == slices).sum(0).tolist())) == 1
        rows = {tuple(row) for row in before[:, ids].T.tolist()}
        assert {tuple(row) for row in kept.T.tolist()} < rows
        assert torch.equal(after[:, -rest:], before[:, -rest:])
        assert torch.equal(calls[NEW - 1]["position_ids"][-3:], bare[NEW - 1]["position_ids"][-3:])
        times.append(slices)
    assert times[0].tolist() != times[1].tolist()


# --- the answer ---


@EACH
@RECIPES
def test_rows_are_answered_as_if_they_were_alone(kind: str, name: str) -> None:
    """A thumbnail, which is left whole, with a large image, a video and words."""
    model = whole(kind)
    small = FLOWER.resize((28, 28))
    rows = [
        ("what is <image> ?", [small], []),
        ("see <image> and <video> .", [WIDE], [qwen.video(4)]),
        ("is the sky blue ?", [], []),
        ("<video> and <image> near <image>", [TALL, small], [qwen.video(2, of=1)]),
    ]
    prompts = [row[0] for row in rows]
    images, films = ([one for row in rows for one in row[i]] for i in (1, 2))
    given = qwen.inputs(model, prompts, images, films)
    with attached_to(model, name) as attached:
        assert attached.plan(4).visual < 4
        together = answer(model, given)
        alone = [answer(model, qwen.inputs(model, *row)) for row in rows]
        assert torch.equal(together, torch.cat(alone))
        right = qwen.inputs(model, prompts, images, films, padding_side="right")
        at = ends(attached.shorten(right))
        last = logits(model, right)[torch.arange(len(rows)), at]
        assert gap(last, logits(model, given)[:, -1]) <= 1e-4


@EACH
def test_prompt_lookup_says_the_same(kind: str) -> None:
    model = whole(kind)
    words = qwen.inputs(model, "<image> the dog the dog the dog", [FLOWER])
    with attached_to(model, "evoprune"):
        assert torch.equal(answer(model, words, prompt_lookup_num_tokens=2), answer(model, words))


# --- conversations ---


def continued(model: Any, out: Any, given: Any, new: Any) -> dict[str, Any]:
    """The next turn: all that was said, and what is said now, of a batch."""
    whole_ids = torch.cat([out.sequences, new["input_ids"]], 1)
    answered = torch.ones(len(whole_ids), NEW, dtype=torch.int64)
    mask = torch.cat([given["attention_mask"], answered, new["attention_mask"]], 1)
    types = torch.zeros_like(whole_ids)
    types[whole_ids == model.config.image_token_id] = 1
    types[whole_ids == model.config.video_token_id] = 2
    return {**new, "input_ids": whole_ids, "attention_mask": mask, "mm_token_type_ids": types}


@EACH
@pytest.mark.parametrize("name", ["evoprune", "two stages"])
@pytest.mark.parametrize(
    "image", [FLOWER, FLOWER.resize((28, 28)), None], ids=["image", "thumbnail", "words"]
)
def test_a_video_comes_in_the_second_turn(kind: str, name: str, image: Any) -> None:
    """After an image that is shortened, one that is left whole, or words alone."""
    model = whole(kind)
    images = None if image is None else [image]
    first = qwen.inputs(model, f"what is {'the sky' if image is None else '<image>'} ?", images)
    second = qwen.inputs(model, "see <video> now", videos=[qwen.video(4)])
    with attached_to(model, name, 20):
        one = said(model, first)
        given = continued(model, one, first, second)
        two = said(model, given, **{CACHE: cache_of(one)})
        more = {name: first[name] for name in ("pixel_values", "image_grid_thw") if images}
        whole_turn = {**given, **more}
        at_once = said(model, whole_turn)
        assert gap(torch.stack(two.logits), torch.stack(at_once.logits)) <= 1e-4
        # By hand after it: the answer's last token is in no cache yet.
        expected = logits(model, moved(whole_turn, two.sequences[:, -NEW:]))[:, -1]
        said(model, given, **{CACHE: cache_of(said(model, first))})
        out = logits(
            model,
            {"input_ids": two.sequences[:, -1:]},
            **{CACHE: cache_of(two)},
        )
        assert gap(out[:, -1], expected) <= 1e-4


@EACH
def test_two_conversations_take_turns(kind: str) -> None:
    """What a prompt's positions go on from is its own, not that of the last prompt."""
    model = whole(kind)
    firsts = [qwen.inputs(model, "see <image> there", [image]) for image in (TALL, WIDE)]
    new = qwen.inputs(model, "is it the same ?")
    with attached_to(model, "evoprune"):
        alone: list[Any] = []
        for first in firsts:
            out = said(model, first)
            given = continued(model, out, first, new)
            alone.append(said(model, given, **{CACHE: cache_of(out)}))
        opened = [said(model, first) for first in firsts]
        for first, out, expected in zip(firsts, opened, alone, strict=True):
            given = continued(model, out, first, new)
            told = said(model, given, **{CACHE: cache_of(out)})
            assert torch.equal(told.sequences, expected.sequences)
            assert gap(torch.stack(told.logits), torch.stack(expected.logits)) <= 1e-5


# --- where it runs ---


@PAIRS
def test_eager_attention_says_the_same(kind: str, name: str) -> None:
    model, eager = whole(kind), KINDS[kind](attn_implementation="eager")
    assert model.config._attn_implementation == "sdpa"
    given = qwen.batch(model)
    with attached_to(model, name), attached_to(eager, name):
        there = given["attention_mask"]
        out, other = logits(model, given), logits(eager, given)
        assert out.shape == other.shape
        assert out.shape[1] < there.shape[1]
        assert gap(out[:, -1], other[:, -1]) <= 1e-4
        assert torch.equal(answer(model, given), answer(eager, given))
    bare = logits(eager, given)
    with attached_to(eager, name, 1.0):
        assert real_gap(logits(eager, given), bare, there) <= 1e-4
    assert remains(eager) == []
    assert torch.equal(logits(eager, given), bare)


@EACH
def test_images_are_reduced_in_the_prompt_alone(kind: str) -> None:
    """Every image and slice of a video once, however many tokens are decoded."""
    model = whole(kind)
    told: list[tuple[str, int, int]] = []

    def tell(event: Any) -> None:
        told.append((event.stage, event.before.x.shape[0], event.after.x.shape[1]))

    given = qwen.batch(model)
    with attached_to(model, "features", on_reduce=tell) as attached:
        logits(model, given)
        once, told[:] = list(told), []
        answer(model, given)
        assert told == once
        grids = [*given["image_grid_thw"].tolist(), *given["video_grid_thw"].tolist()]
        units = sum(t for t, _, _ in grids)
        assert {stage for stage, _, _ in told} == {"features"}
        assert sum(b for _, b, _ in told) == units
        wanted = sum(t * attached.plan(h * w // 4).features for t, h, w in grids)
        assert sum(b * n for _, b, n in told) == wanted


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
        answer(model, single(model))
        assert model.model.rope_deltas is not None  # so that this test could fail
    assert model.model.rope_deltas is None
    assert torch.equal(by_hand(), bare)


@PAIRS
def test_other_forms_of_a_call(kind: str, name: str) -> None:
    model = whole(kind)
    given = dict(qwen.batch(model))
    with entering(model) as calls:
        logits(model, given)
    places = calls[0]["position_ids"]
    counted = (given["attention_mask"].cumsum(-1) - 1).clamp_min(0)[None]
    with attached_to(model, name), torch.no_grad():
        told = logits(model, given)
        assert torch.equal(model(**given, return_dict=False)[0], told)
        assert gap(logits(model, given, logits_to_keep=2), told[:, -2:]) <= 1e-5
        hidden = model(**given, output_hidden_states=True).hidden_states
        assert {x.shape[1] for x in hidden} == {told.shape[1]}
        # As generate hands them on: the places in the text, and the three of each token.
        four = logits(model, given, position_ids=torch.cat([counted, places]))
        assert gap(four[:, -1], told[:, -1]) <= 1e-4
        ids, mask = given.pop("input_ids"), given.pop("attention_mask")
        assert torch.equal(model(ids, mask, **given).logits, told)


@EACH
def test_prompts_that_cannot_be_shortened_are_refused(kind: str) -> None:
    model = whole(kind)
    given = dict(single(model))
    n = given["input_ids"].shape[1]
    embedded = {**given, "inputs_embeds": model.get_input_embeddings()(given["input_ids"])}
    embedded.pop("input_ids")
    with attached_to(model, "evoprune"):
        told = logits(model, given)
        for call in (model, model.generate):
            with pytest.raises(AttachError, match="not inputs_embeds"):
                call(**embedded)
            with pytest.raises(AttachError, match=r"attention_mask is \(1, 1, \d+, \d+\)"):
                call(**{**given, "attention_mask": torch.ones(1, 1, n, n)})
        assert torch.equal(logits(model, given), told)


@pytest.mark.parametrize("name", ["evoprune", "two stages"])
def test_two_models_in_two_threads(name: str) -> None:
    """Two models: the bare one, too, keeps on itself where its positions go on (`rope_deltas`)."""
    models = [copy.deepcopy(whole(kind)) for kind in KINDS]
    given = [qwen.batch(models[0]), single(models[1])]
    done = [attached_to(model, name) for model in models]
    expected = [answer(*job) for job in zip(models, given, strict=True)]
    wrong: list[Any] = []
    threads = [
        threading.Thread(target=_repeat(models[i], given[i], expected[i], wrong)) for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for attached in done:
        attached.detach()


def _repeat(model: Any, given: Any, expected: Tensor, wrong: list[Any]) -> Callable[[], None]:
    def work() -> None:
        for _ in range(5):
            try:
                if not torch.equal(answer(model, given), expected):
                    wrong.append("another answer")
            except Exception as error:
                wrong.append(error)

    return work
