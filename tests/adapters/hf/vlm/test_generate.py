"""All ways of generating: the caller's code stays as it is, and so does what comes back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
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
    remains,
    whole,
)
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tests.pairs import paired
from tokenzoo.errors import AttachError

EACH = pytest.mark.parametrize("kind", KINDS)
NAMES = ("evoprune", "divprune", "fastv", "dart")
RECIPES = pytest.mark.parametrize("name", NAMES)
PAIRS = paired("kind", KINDS, "name", NAMES)
LLM = ("fastv", "dart")

# The row that is the longest has no image: when the others are shortened, it stays as long as it is.
WORDY = Batch(("<image> ?", " ".join(["is the sky blue"] * 40)), ((TEMPLE,), ()))


def built(name: str, keep: int | float = 21) -> tokenzoo.Method:
    return tokenzoo.build(name, keep=keep)


# --- sampling ---


@PAIRS
def test_sampling_is_a_loop_by_hand(kind: str, name: str) -> None:
    model = whole(kind)
    given = PADDED.given(model)
    with built(name).attach(model), torch.no_grad():
        torch.manual_seed(3)
        said = answer(model, given, do_sample=True, top_k=0)
        torch.manual_seed(3)
        ids, mask, by_hand = given["input_ids"], given["attention_mask"], []
        for _ in range(NEW):  # from the beginning each time, in the caller's own coordinates
            last = logits(model, {**given, "input_ids": ids, "attention_mask": mask})[:, -1]
            by_hand.append(torch.multinomial(last.softmax(-1), 1))
            ids = torch.cat([ids, by_hand[-1]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            if name in LLM:
                break  # there, what is kept depends on the end of the prompt
        assert torch.equal(said[:, : len(by_hand)], torch.cat(by_hand, 1))
        torch.manual_seed(3)
        several = answer(model, given, do_sample=True, top_k=0, num_return_sequences=2)
        assert several.shape == (6, NEW)
        assert not torch.equal(several[::2], several[1::2])
        torch.manual_seed(3)
        twice = {
            key: value.repeat_interleave(2, 0) if key in ("input_ids", "attention_mask") else value
            for key, value in given.items()
        }
        # The same rows twice, with the same images: WIDE, WIDE, FLOWER, SMALL, FLOWER, SMALL.
        double = [image for image in PADDED.images for _ in range(2)]
        prompts = [prompt for prompt in PADDED.prompts for _ in range(2)]
        again = Batch(tuple(prompts), tuple(double)).given(model)
        assert torch.equal(again["input_ids"], twice["input_ids"])
        assert torch.equal(answer(model, again, do_sample=True, top_k=0), several)


@PAIRS
def test_several_beams_come_back(kind: str, name: str) -> None:
    model = whole(kind)
    for batch in batches(kind):
        given = batch.given(model)
        with built(name).attach(model):
            way = {"num_beams": 3, "num_return_sequences": 2}
            said = answer(model, given, **way)
            assert said.shape == (2 * len(given["input_ids"]), NEW)
            assert torch.equal(said[::2], answer(model, given, num_beams=3))
            assert torch.equal(answer(model, given, use_cache=False, **way), said)


# --- streaming ---


class Stream:
    """A streamer that remembers."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.seen.append(value)

    def end(self) -> None:
        self.ended += 1


@PAIRS
def test_a_streamer_sees_the_callers_prompt_and_the_answer(kind: str, name: str) -> None:
    model = whole(kind)
    given = SINGLE.given(model)
    with built(name).attach(model):
        stream = Stream()
        out = model.generate(**given, max_new_tokens=NEW, do_sample=False, streamer=stream)
        assert torch.equal(stream.seen[0], given["input_ids"])
        assert [token.shape for token in stream.seen[1:]] == [(1,)] * NEW
        assert torch.equal(torch.cat([token.flatten() for token in stream.seen]), out[0])
        assert stream.ended == 1


@pytest.mark.parametrize("skip", [True, False])
def test_text_is_streamed(skip: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    tokenizer = hf.processor(model).tokenizer
    with built("evoprune").attach(model):
        streamer = transformers.TextStreamer(tokenizer, skip_prompt=skip)
        out = model.generate(**given, max_new_tokens=NEW, do_sample=False, streamer=streamer)
    shown = out[0, given["input_ids"].shape[1] :] if skip else out[0]
    assert capsys.readouterr().out.split() == tokenizer.decode(shown).split()


# --- lengths ---


@PAIRS
def test_lengths_count_the_callers_prompt(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = whole(kind), []
    monkeypatch.setattr(transformers.generation.utils.logger, "warning_once", told.append)
    given = PADDED.given(model)
    n = given["input_ids"].shape[1]
    with built(name).attach(model):
        said = answer(model, given)
        config = transformers.GenerationConfig(max_length=n + NEW, pad_token_id=hf.PAD)
        before, bare = config.to_dict(), {"max_new_tokens": None, "do_sample": None}
        assert torch.equal(answer(model, given, max_new_tokens=None, max_length=n + NEW), said)
        assert torch.equal(answer(model, given, generation_config=config, **bare), said)
        assert told == []  # no length beside the configuration
        two = answer(model, given, generation_config=config, **{**bare, "max_length": n + 2})
        assert torch.equal(two, said[:, :2])
        assert config.to_dict() == before
        # The word that row 0 says first would end it.
        ends = {"eos_token_id": int(said[0, 0])}
        asked = answer(model, given, min_new_tokens=3, **ends)
        assert torch.equal(answer(model, given, min_length=n + 3, **ends), asked)
        assert not torch.equal(answer(model, given, **ends), asked)
        config = transformers.GenerationConfig(
            min_length=n + 3, max_new_tokens=NEW, pad_token_id=hf.PAD, **ends
        )
        assert torch.equal(answer(model, given, generation_config=config, **bare), asked)


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


def test_a_row_that_ends_early_is_padded() -> None:
    model = whole("llava")
    given = PADDED.given(model)
    with built("evoprune").attach(model):
        said = answer(model, given)
        out = answer(model, given, eos_token_id=int(said[0, 0]))
        assert out[0].tolist() == [int(said[0, 0])] + [hf.PAD] * (out.shape[1] - 1)


# --- other arguments ---


def test_inputs_is_another_name_of_input_ids() -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    rest = {key: value for key, value in given.items() if key != "input_ids"}
    with built("evoprune").attach(model):
        out = model.generate(**given, max_new_tokens=NEW, do_sample=False)
        ids = given["input_ids"]
        assert torch.equal(
            model.generate(inputs=ids, **rest, max_new_tokens=NEW, do_sample=False), out
        )
        assert torch.equal(model.generate(ids, **rest, max_new_tokens=NEW, do_sample=False), out)
        rest.pop("attention_mask")
        assert torch.equal(model.generate(ids, **rest, max_new_tokens=NEW, do_sample=False), out)


@PAIRS
def test_a_dictionary_comes_back(kind: str, name: str) -> None:
    model = whole(kind)
    given = SINGLE.given(model)
    n = given["input_ids"].shape[1]
    with built(name).attach(model), torch.no_grad():
        said = answer(model, given)
        out = model.generate(
            **given,
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        assert torch.equal(out.sequences, torch.cat([given["input_ids"], said], 1))
        assert torch.equal(torch.stack(out.logits, 1).argmax(-1), said)
        assert gap(logits(model, given)[:, -1], out.logits[0]) <= 1e-4
        held = [cache_of(out).get_seq_length(i) for i in range(4)]
        assert held[3] < n  # shorter than the caller's prompt, in the last layers at least
        assert (held[0] > held[3]) == (name in LLM)


@EACH
@pytest.mark.parametrize("name", ["evoprune", "divprune"])
def test_assisted_generation_says_the_same(kind: str, name: str) -> None:
    model, helper = whole(kind), copy.deepcopy(whole(kind))
    with torch.no_grad():  # a helper that is wrong often
        helper.lm_head.weight.add_(0.3 * torch.randn_like(helper.lm_head.weight))
        helper.lm_head.weight[: len(hf.SPECIAL)] = 0
    given = SINGLE.given(model)
    with built(name).attach(model):
        said = answer(model, given)
        assert torch.equal(answer(model, given, assistant_model=helper), said)
        with built(name).attach(helper):
            assert torch.equal(answer(model, given, assistant_model=helper), said)
    assert remains(helper) == []


@pytest.mark.parametrize("name", ["evoprune", "divprune"])
def test_a_static_cache_says_the_same(name: str) -> None:
    for kind in KINDS:
        model = whole(kind)
        given = PADDED.given(model)
        with built(name).attach(model):
            said = answer(model, given)
            assert torch.equal(answer(model, given, cache_implementation="static"), said)


@RECIPES
def test_a_dynamic_cache_says_the_same(name: str) -> None:
    model = whole("llava")
    given = PADDED.given(model)
    with built(name).attach(model):
        said = answer(model, given)
        assert torch.equal(answer(model, given, cache_implementation="dynamic"), said)
        fresh = transformers.DynamicCache()
        assert torch.equal(answer(model, given, **{CACHE: fresh}), said)


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
