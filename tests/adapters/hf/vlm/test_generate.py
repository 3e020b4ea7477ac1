"""LLaVA's conversations and loops by hand; other forms of generating: tests/conformance."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import (
    CACHE,
    CACHES,
    FLOWER,
    KINDS,
    NEW,
    PADDED,
    SINGLE,
    TALL,
    TEMPLE,
    Batch,
    answer,
    batches,
    cache_of,
    entering,
    logits,
    whole,
)
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import AttachError

EACH = pytest.mark.parametrize("kind", KINDS)
NAMES = ("evoprune", "divprune", "fastv", "dart")
RECIPES = pytest.mark.parametrize("name", NAMES)
LLM = ("fastv", "dart")

# The row that is the longest has no image: when the others are shortened, it stays as long as it is.
WORDY = Batch(("<image> ?", " ".join(["is the sky blue"] * 40)), ((TEMPLE,), ()))


def built(name: str, keep: int | float = 21) -> tokenzoo.Method:
    return tokenzoo.build(name, keep=keep)


# --- lengths ---


def test_lengths_of_the_models_own_configuration() -> None:
    model = copy.deepcopy(whole("llava"))
    given = PADDED.given(model)
    n = given["input_ids"].shape[1]
    bare = {"max_new_tokens": None}
    with built("evoprune").attach(model):
        said = answer(model, given)
        model.generation_config.max_length = n + NEW
        assert torch.equal(answer(model, given, **bare), said)
        assert model.generation_config.max_length == n + NEW
        assert torch.equal(answer(model, given, max_new_tokens=2), said[:, :2])


# --- conversations ---


def turn(model: Any, given: Any, cache: Any, name: str = CACHE) -> Any:
    return model.generate(
        **given,
        **{name: cache},
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )


def said_before(out: Any, new: Any) -> dict[str, Tensor]:
    """The whole conversation, and what was said now."""
    ids = torch.cat([out.sequences, new["input_ids"]], 1)
    return {**new, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@EACH
@RECIPES
def test_a_conversation_goes_on_with_its_cache(kind: str, name: str) -> None:
    """Three turns, a new image in the second, against one prompt of all that was said."""
    model = whole(kind)
    first = SINGLE.given(model)
    second = hf.inputs(model, "and <image> ?", [[TALL]])
    third = hf.inputs(model, "is it the same ?")
    both = [TEMPLE, TALL]
    with built(name).attach(model) as attached, entering(model) as calls:
        one = turn(model, first, None)
        cache = copy.deepcopy(cache_of(one))
        two = turn(model, said_before(one, second), cache_of(one), CACHES[0])
        prompt = said_before(one, second)["input_ids"]
        if name in LLM:  # the new image, by hand: nothing of this prompt is shortened
            new = {**second, "attention_mask": torch.ones_like(prompt)}
            new["input_ids"] = torch.cat([one.sequences[:, -1:], second["input_ids"]], 1)
            by_hand = logits(model, new, **{CACHES[0]: cache})
            assert gap(by_hand[:, -1], two.logits[0]) <= 1e-4
        assert torch.equal(two.sequences[:, : prompt.shape[1]], prompt)
        # The first image is not read again; the answer's last token is in no cache yet.
        new = attached.shorten(second)["input_ids"].shape[1]
        assert calls[NEW]["inputs_embeds"].shape[1] == new + 1
        cache = copy.deepcopy(cache_of(two))
        three = turn(model, said_before(two, third), cache_of(two), CACHES[1])
        whole_prompt = said_before(two, third)["input_ids"]
        assert torch.equal(three.sequences[:, : whole_prompt.shape[1]], whole_prompt)
        assert three.sequences.shape[1] == whole_prompt.shape[1] + NEW
        # The same by hand, in the caller's coordinates.
        new = torch.cat([two.sequences[:, -1:], third["input_ids"]], 1)
        mask = torch.ones_like(whole_prompt)
        places = torch.arange(mask.shape[1])[None, -new.shape[1] :]
        out = logits(
            model,
            {"input_ids": new, "attention_mask": mask},
            position_ids=places,
            **{CACHES[1]: cache},
        )
        assert gap(out[:, -1], three.logits[0]) <= 1e-4
        if name in LLM:
            return  # what was kept depends on where the prompt ended then
        images = hf.inputs(model, "<image> <image>", [both])
        if kind == "llava_onevision":
            # Two images in one prompt are not cut into crops, and each alone was: three turns as they were.
            return
        rest = {k: v for k, v in images.items() if k not in ("input_ids", "attention_mask")}
        again = {**rest, "input_ids": whole_prompt}
        again["attention_mask"] = torch.ones_like(whole_prompt)
        at_once = model.generate(**again, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(at_once, three.sequences)


@EACH
@RECIPES
@pytest.mark.parametrize("batch", [PADDED, WORDY], ids=["padded", "wordy"])
def test_a_turn_is_the_same_decoded_by_hand(kind: str, name: str, batch: Batch) -> None:
    """The second turn, fed to the model with a copy of the cache."""
    model = whole(kind)
    given = batch.given(model)
    b = len(given["input_ids"])
    with built(name).attach(model), torch.no_grad():
        one = turn(model, given, None)
        cache = copy.deepcopy(cache_of(one))
        words = torch.randint(len(hf.SPECIAL), len(hf.WORDS), (b, 4))
        ids = torch.cat([one.sequences, words], 1)
        mask = torch.cat([given["attention_mask"], torch.ones(b, NEW + 4, dtype=torch.int64)], 1)
        two = turn(model, {"input_ids": ids, "attention_mask": mask}, cache_of(one))
        if name not in LLM:  # there, what is kept depends on the end of the prompt
            at_once = turn(model, {**given, "input_ids": ids, "attention_mask": mask}, None)
            assert gap(torch.stack(two.logits), torch.stack(at_once.logits)) <= 1e-4
        # The answer's last token is in no cache yet.
        new = torch.cat([one.sequences[:, -1:], words], 1)
        places = (mask.cumsum(-1) - 1).clamp_min(0)[:, -5:]
        some = {CACHE: cache, "use_cache": True}
        out = model(input_ids=new, attention_mask=mask, position_ids=places, **some)
        assert gap(out.logits[:, -1], two.logits[0]) <= 1e-4
        for i in range(NEW - 1):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            word, places = two.sequences[:, ids.shape[1] + i, None], places[:, -1:] + 1
            out = model(input_ids=word, attention_mask=mask, position_ids=places, **some)
            assert gap(out.logits[:, -1], two.logits[i + 1]) <= 1e-4


# --- a loop by hand ---


@EACH
@RECIPES
@pytest.mark.parametrize("positions", [True, False])
def test_a_loop_by_hand_in_the_callers_coordinates(kind: str, name: str, positions: bool) -> None:
    model = whole(kind)
    for batch in (*batches(kind), WORDY):
        given = batch.given(model)
        with built(name).attach(model), torch.no_grad():
            expected = model.generate(
                **given,
                max_new_tokens=NEW,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            mask = given["attention_mask"]
            places = (mask.cumsum(-1) - 1).clamp_min(0)
            some = {"position_ids": places} if positions else {}
            out = model(**given, **some, use_cache=True)
            assert gap(out.logits[:, -1], expected.logits[0]) <= 1e-4
            for i in range(NEW - 1):
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                places = places[:, -1:] + 1
                out = model(
                    input_ids=out.logits[:, -1:].argmax(-1),
                    attention_mask=mask,
                    **{CACHE: cache_of(out)},
                    **({"position_ids": places} if positions else {}),
                )
                assert gap(out.logits[:, -1], expected.logits[i + 1]) <= 1e-4


@pytest.mark.parametrize("name", ["evoprune", "fastv"])
def test_prompt_lookup_says_the_same(name: str) -> None:
    model = whole("llava")
    given = hf.inputs(model, "<image> the dog the dog the dog", [[FLOWER]])
    with built(name).attach(model):
        if name == "fastv":
            with pytest.raises(AttachError, match=r"generate\(prompt_lookup_num_tokens=\.\.\.\)"):
                answer(model, given, prompt_lookup_num_tokens=2)
            return
        said = answer(model, given)
        assert torch.equal(answer(model, given, prompt_lookup_num_tokens=2), said)
