"""`generate` of every whole model that is attached says what a loop by hand says, however it is called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import internvl, paligemma, qwen
from tests.adapters.hf.vlm.calls import (
    CACHE,
    NEW,
    NONE,
    ONE,
    PADDED,
    TWO,
    answer,
    cache_of,
    entering,
    logits,
    remains,
)
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread

Photos = list[list[Any]]
FLOWER, TALL, WIDE = hf.photos()[1:4]


@dataclass(frozen=True)
class Chat:
    """A whole model, and its prompts.

    Attributes:
        make: the model.
        ask: from the model, prompts and the images of each, what the processor returns.
        padded: several prompts, of several sizes.
        first: two prompts of different lengths with an image each.
        second: what is asked after each of them, with another image.
        recipes: that run on it.
        alone: an image gets as many tokens in a prompt with others as alone.
        assisted: the bare model says with an assistant what it says alone.
        static: the bare model runs with a static cache.
    """

    make: Callable[[], Any]
    ask: Callable[[Any, list[str], Photos], Any]
    padded: Callable[[Any], Any]
    first: tuple[str, str] = ("see <image> there", "<image> ?")
    second: str = "and <image> ?"
    recipes: tuple[str, ...] = ("evoprune", "tome", "divprune", "fastv")
    alone: bool = True
    assisted: bool = True
    static: bool = True

    def single(self, model: Any) -> Any:
        """One prompt with an image."""
        return self.ask(model, [self.first[0]], [[FLOWER]])


def llava(kind: str) -> Chat:
    return Chat(getattr(hf, kind), hf.inputs, PADDED.given, alone=kind != "llava_onevision")


def qwen_vl(kind: str) -> Chat:
    return Chat(
        getattr(qwen, kind),
        lambda model, prompts, images: qwen.inputs(model, prompts, list(chain(*images))),
        qwen.batch,
    )


def internvl_vl() -> Chat:
    prompts = [ONE, TWO, NONE]
    return Chat(
        internvl.internvl,
        lambda model, prompts, images: internvl.inputs(prompts, list(chain(*images))),
        lambda model: internvl.inputs(prompts, [WIDE, TALL, FLOWER]),
    )


def paligemma_vl(text: str) -> Chat:
    """Its images are before its words, and every prompt has one."""
    prompts = ["<image> what is this ?", "<image> <image> what is different ?", "<image> ?"]
    return Chat(
        partial(paligemma.paligemma, text),
        lambda model, prompts, images: paligemma.inputs(prompts, list(chain(*images))),
        lambda model: paligemma.inputs(prompts, [WIDE, TALL, FLOWER, WIDE]),
        ("<image> see the dog there", "<image> ?"),
        "<image> and here ?",
        recipes=("evoprune", "tome", "divprune"),  # no Gemma is followed
        assisted=False,  # the proposals of an assistant are read in both directions
        static=text == "gemma",
    )


CHATS = {
    **{kind: llava(kind) for kind in ("llava", "llava_next", "llava_onevision")},
    **{kind: qwen_vl(kind) for kind in ("qwen2_vl", "qwen2_5_vl")},
    "internvl": internvl_vl(),
    "paligemma": paligemma_vl("gemma"),
    "paligemma2": paligemma_vl("gemma2"),
}
# In the tower, after the projector, in the language model. Of each kind of adapter one model with all.
RECIPES = {"evoprune": 0.35, "tome": 0.35, "divprune": 0.35, "fastv": 0.35}
FULL = ("llava", "qwen2_5_vl")
CASES = [
    (kind, name)
    for i, kind in enumerate(CHATS)
    for name in (
        CHATS[kind].recipes if kind in FULL else [CHATS[kind].recipes[i % len(CHATS[kind].recipes)]]
    )
]
EACH = pytest.mark.parametrize(("kind", "name"), CASES)
KINDS = pytest.mark.parametrize("kind", CHATS)
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@cache
def whole(kind: str) -> Any:
    """The model of that name, the same for all tests: they leave it bare."""
    return CHATS[kind].make()


def attached(kind: str, name: str = "evoprune") -> tuple[Any, Any]:
    """The model, and what is attached to it; a context."""
    return whole(kind), tokenzoo.build(name, keep=RECIPES[name]).attach(whole(kind))


def moved(given: Any, more: Tensor) -> dict[str, Tensor]:
    """The same call with an answer `[b, k]` after the prompt."""
    new = {**given, "input_ids": torch.cat([given["input_ids"], more], 1)}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 1)):
        if name in given:
            new[name] = torch.cat([given[name], torch.full_like(more, fill)], 1)
    return new


@EACH
def test_sampling_is_a_loop_by_hand(kind: str, name: str) -> None:
    model, context = attached(kind, name)
    given, way = CHATS[kind].padded(model), {"do_sample": True, "top_k": 0}
    with context:
        torch.manual_seed(3)
        told = answer(model, given, **way)
        torch.manual_seed(3)
        words = given["input_ids"][:, :0]
        # From the beginning each time, in the caller's own coordinates; with fastv only once, because
        # what it keeps depends on the end of the prompt.
        for _ in range(1 if name == "fastv" else NEW):
            last = logits(model, moved(given, words))[:, -1]
            words = torch.cat([words, torch.multinomial(last.softmax(-1), 1)], 1)
        assert torch.equal(told[:, : words.shape[1]], words)
        several = answer(model, given, num_return_sequences=2, **way)
        assert several.shape == (2 * len(told), NEW)
        assert not torch.equal(several[::2], several[1::2])


@EACH
def test_several_beams_come_back(kind: str, name: str) -> None:
    model, context = attached(kind, name)
    given, way = CHATS[kind].padded(model), {"num_beams": 3, "num_return_sequences": 2}
    with context:
        told = answer(model, given, **way)
        assert told.shape == (2 * len(given["input_ids"]), NEW)
        assert torch.equal(told[::2], answer(model, given, num_beams=3))
        assert torch.equal(answer(model, given, use_cache=False, **way), told)


def turn(model: Any, given: Any, **cache: Any) -> Any:
    options = {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(**given, **GREEDY, **options, **cache)


@pytest.mark.parametrize("kind", [kind for kind, chat in CHATS.items() if chat.alone])
@pytest.mark.parametrize("name", ["evoprune", "divprune"])
def test_a_second_turn_with_new_images_is_the_prompt_of_all(kind: str, name: str) -> None:
    """Over the cache of the first, against a recomputed prompt; a padded batch."""
    model, context = attached(kind, name)
    chat, types = CHATS[kind], ("token_type_ids", "mm_token_type_ids")
    first = chat.ask(model, list(chat.first), [[TALL], [FLOWER]])
    second = chat.ask(model, [chat.second] * 2, [[WIDE], [WIDE]])
    every = chat.ask(model, ["<image> <image>"] * 2, [[TALL, WIDE], [FLOWER, WIDE]])
    assert not first["attention_mask"].all()
    with context, entering(model) as calls:
        one = turn(model, first)
        given = moved(first, torch.cat([one.sequences[:, -NEW:], second["input_ids"]], 1))
        if (
            types[1] in first
        ):  # PaliGemma reads a second prefix from left to right, in the bare model too
            given[types[1]][:, -second["input_ids"].shape[1] :] = second[types[1]]
        tokens = {key: given[key] for key in given if key in types}
        tokens |= {key: given[key] for key in ("input_ids", "attention_mask")}
        two = turn(model, {**second, **tokens}, **{CACHE: cache_of(one)})
        assert calls[NEW]["inputs_embeds"].shape[1] < second["input_ids"].shape[1]
        at_once = turn(model, {**every, **tokens})
    assert torch.equal(two.sequences, at_once.sequences)
    assert gap(torch.stack(two.logits), torch.stack(at_once.logits)) <= 1e-4


@EACH
def test_rows_are_answered_as_if_they_were_alone(kind: str, name: str) -> None:
    model, context = attached(kind, name)
    chat, images = CHATS[kind], [[TALL], [FLOWER]]
    given = chat.ask(model, list(chat.first), images)
    with context:
        told, last = answer(model, given), logits(model, given)[:, -1]
        for row in range(2):
            alone = chat.ask(model, [chat.first[row]], [images[row]])
            assert torch.equal(answer(model, alone)[0], told[row])
            assert gap(logits(model, alone)[0, -1], last[row]) <= 1e-4
        assert torch.equal(answer(model, given, use_cache=False), told)


class Stream:
    """A streamer that remembers."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.seen.append(value)

    def end(self) -> None:
        self.ended += 1


@EACH
def test_a_streamer_sees_the_callers_prompt_and_the_answer(
    kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, context = attached(kind, name)
    given, stream, tokenizer = CHATS[kind].single(model), Stream(), hf._tokenizer("left")
    with context:
        out = model.generate(**given, **GREEDY, streamer=stream)
        assert torch.equal(stream.seen[0], given["input_ids"])
        assert [token.shape for token in stream.seen[1:]] == [(1,)] * NEW
        assert torch.equal(torch.cat([token.flatten() for token in stream.seen]), out[0])
        assert stream.ended == 1
        for skip in (True, False):
            text = transformers.TextStreamer(tokenizer, skip_prompt=skip)
            model.generate(**given, **GREEDY, streamer=text)
            shown = out[0, given["input_ids"].shape[1] :] if skip else out[0]
            assert capsys.readouterr().out.split() == tokenizer.decode(shown).split()


@EACH
def test_lengths_count_the_callers_prompt(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = attached(kind, name)
    warned: list[str] = []
    monkeypatch.setattr(transformers.generation.utils.logger, "warning_once", warned.append)
    given = CHATS[kind].padded(model)
    n = given["input_ids"].shape[1]
    with context:
        told = answer(model, given)
        config = transformers.GenerationConfig(max_length=n + NEW, pad_token_id=hf.PAD)
        before, bare = config.to_dict(), {"max_new_tokens": None, "do_sample": None}
        assert torch.equal(answer(model, given, max_new_tokens=None, max_length=n + NEW), told)
        assert torch.equal(answer(model, given, generation_config=config, **bare), told)
        assert warned == []  # no length in addition to the configuration's
        two = answer(model, given, generation_config=config, **{**bare, "max_length": n + 2})
        assert torch.equal(two, told[:, :2])
        assert config.to_dict() == before
        # The word that row 0 says first ends it, and the rest of the row is padding.
        stop = {"eos_token_id": int(told[0, 0])}
        out = answer(model, given, **stop)
        assert out[0].tolist() == [int(told[0, 0])] + [hf.PAD] * (out.shape[1] - 1)
        asked = answer(model, given, min_new_tokens=2, **stop)
        assert torch.equal(answer(model, given, min_length=n + 2, **stop), asked)
        assert not torch.equal(asked[0, :1], out[0, :1])
        config = transformers.GenerationConfig(
            min_length=n + 2, max_new_tokens=NEW, pad_token_id=hf.PAD, **stop
        )
        assert torch.equal(answer(model, given, generation_config=config, **bare), asked)


@KINDS
def test_inputs_is_another_name_of_input_ids(kind: str) -> None:
    model, context = attached(kind)
    given = CHATS[kind].single(model)
    ids, rest = given["input_ids"], {k: v for k, v in given.items() if k != "input_ids"}
    with context:
        out = model.generate(**given, **GREEDY)
        assert torch.equal(model.generate(inputs=ids, **rest, **GREEDY), out)
        assert torch.equal(model.generate(ids, **rest, **GREEDY), out)
        rest.pop("attention_mask")
        assert torch.equal(model.generate(ids, **rest, **GREEDY), out)


@EACH
def test_a_dictionary_comes_back(kind: str, name: str) -> None:
    model, context = attached(kind, name)
    given = CHATS[kind].single(model)
    with context:
        told, last = answer(model, given), logits(model, given)[:, -1]
        options = {"return_dict_in_generate": True, "output_logits": True}
        out = model.generate(**given, **GREEDY, **options)
    assert torch.equal(out.sequences, torch.cat([given["input_ids"], told], 1))
    assert torch.equal(torch.stack(out.logits, 1).argmax(-1), told)
    assert gap(last, out.logits[0]) <= 1e-4
    held = [cache_of(out).get_seq_length(i) for i in range(4)]
    assert (
        held[3] < given["input_ids"].shape[1]
    )  # shorter than the prompt, in the last layers at least
    assert (held[0] > held[3]) == (name == "fastv")


@EACH
def test_other_caches_say_the_same(kind: str, name: str) -> None:
    model, context = attached(kind, name)
    given = CHATS[kind].padded(model)
    with context:
        told = answer(model, given)
        assert torch.equal(answer(model, given, cache_implementation="dynamic"), told)
        assert torch.equal(answer(model, given, **{CACHE: transformers.DynamicCache()}), told)
        # After fastv it is refused: layers of different lengths.
        if name != "fastv" and CHATS[kind].static:
            assert torch.equal(answer(model, given, cache_implementation="static"), told)


@pytest.mark.parametrize(
    ("kind", "name"), [case for case in CASES if case[1] != "fastv" and CHATS[case[0]].assisted]
)
def test_assisted_by_a_model_that_is_often_wrong(kind: str, name: str) -> None:
    model, helper = whole(kind), copy.deepcopy(whole(kind))
    with torch.no_grad():
        helper.lm_head.weight.add_(0.3 * torch.randn_like(helper.lm_head.weight))
        helper.lm_head.weight[: len(hf.SPECIAL)] = 0
    given = CHATS[kind].single(model)
    with attached(kind, name)[1]:
        told = answer(model, given)
        assert torch.equal(answer(model, given, assistant_model=helper), told)
        with tokenzoo.build(name, keep=RECIPES[name]).attach(helper):
            assert torch.equal(answer(model, given, assistant_model=helper), told)
    assert remains(helper) == []
