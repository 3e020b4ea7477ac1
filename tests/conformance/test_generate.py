"""`generate` of every whole model that is attached says what a loop by hand says, however it is called."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import Tensor

from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import CACHE, NEW, answer, cache_of, logits, remains
from tests.adapters.models import gap
from tests.conformance.chats import ASKED, CHATS, FIRST, INSIDE, LLM, method, moved, said, whole

GREEDY = {"max_new_tokens": NEW, "do_sample": False}

# What the wrapper of `generate` does with its options knows of a model nothing but the lengths of prompts.
WRAPPED = pytest.mark.parametrize(
    ("kind", "name"), [("llava", "evoprune"), ("qwen2_5_vl", "fastv"), ("paligemma", "evoprune")]
)


@ASKED
def test_sampling_is_a_loop_by_hand(kind: str, name: str) -> None:
    model, way = whole(kind), {"do_sample": True, "top_k": 0}
    given = CHATS[kind].batch.given(model)
    with method(name).attach(model):
        torch.manual_seed(3)
        out = said(model, given, **way)
        torch.manual_seed(3)
        words = given["input_ids"][:, :0]
        # From the beginning each time, in the caller's own coordinates; in the LLM only once, because
        # what is kept there depends on the end of the prompt.
        for i in range(1 if name in LLM else NEW):
            last = logits(model, moved(given, words))[:, -1]
            assert gap(last, out.logits[i]) <= 1e-4
            words = torch.cat([words, torch.multinomial(last.softmax(-1), 1)], 1)
        n = given["input_ids"].shape[1]
        assert torch.equal(out.sequences[:, n : n + words.shape[1]], words)
        several = answer(model, given, num_return_sequences=2, **way)
        assert several.shape == (2 * len(words), NEW)
        assert not torch.equal(several[::2], several[1::2])


@ASKED
def test_several_beams_come_back(kind: str, name: str) -> None:
    model, way = whole(kind), {"num_beams": 3, "num_return_sequences": 2}
    given = CHATS[kind].batch.given(model)
    with method(name).attach(model):
        told = answer(model, given, **way)
        assert told.shape == (2 * len(given["input_ids"]), NEW)
        assert torch.equal(told[::2], answer(model, given, num_beams=3))
        assert torch.equal(answer(model, given, use_cache=False, **way), told)


class Stream:
    """A streamer that remembers."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.seen.append(value)

    def end(self) -> None:
        self.ended += 1


@WRAPPED
def test_a_streamer_sees_the_callers_prompt_and_the_answer(
    kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = whole(kind)
    given, stream, tokenizer = CHATS[kind].single(model), Stream(), hf._tokenizer("left")
    with method(name).attach(model):
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


@WRAPPED
def test_lengths_count_the_callers_prompt(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = whole(kind)
    warned: list[str] = []
    monkeypatch.setattr(transformers.generation.utils.logger, "warning_once", warned.append)
    given = CHATS[kind].batch.given(model)
    n = given["input_ids"].shape[1]
    with method(name).attach(model):
        told = answer(model, given)
        config = transformers.GenerationConfig(max_length=n + NEW, pad_token_id=hf.PAD)
        before, bare = config.to_dict(), {"max_new_tokens": None, "do_sample": None}
        assert torch.equal(answer(model, given, max_new_tokens=None, max_length=n + NEW), told)
        assert torch.equal(answer(model, given, generation_config=config, **bare), told)
        assert warned == []  # no length in addition to the configuration's
        two = answer(model, given, generation_config=config, **{**bare, "max_length": n + 2})
        assert torch.equal(two, told[:, :2])
        with monkeypatch.context() as patch:
            patch.setattr(model.generation_config, "max_length", n + NEW)
            assert torch.equal(answer(model, given, max_new_tokens=None), told)
            assert model.generation_config.max_length == n + NEW
            assert torch.equal(answer(model, given, max_new_tokens=2), told[:, :2])
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


@WRAPPED
def test_inputs_is_another_name_of_input_ids(kind: str, name: str) -> None:
    model = whole(kind)
    given = CHATS[kind].single(model)
    ids, rest = given["input_ids"], {k: v for k, v in given.items() if k != "input_ids"}
    with method(name).attach(model):
        out = model.generate(**given, **GREEDY)
        assert torch.equal(model.generate(inputs=ids, **rest, **GREEDY), out)
        assert torch.equal(model.generate(ids, **rest, **GREEDY), out)
        rest.pop("attention_mask")
        assert torch.equal(model.generate(ids, **rest, **GREEDY), out)


@ASKED
def test_a_dictionary_comes_back(kind: str, name: str) -> None:
    model = whole(kind)
    given = CHATS[kind].single(model)
    with method(name).attach(model):
        told, last = answer(model, given), logits(model, given)[:, -1]
        out = said(model, given)
    assert torch.equal(out.sequences, torch.cat([given["input_ids"], told], 1))
    assert torch.equal(torch.stack(out.logits, 1).argmax(-1), told)
    assert gap(last, out.logits[0]) <= 1e-4
    held = cache_of(out).get_seq_length(3)
    assert held < given["input_ids"].shape[1]  # in the last layers at least
    first = held if CHATS[kind].linear else cache_of(out).get_seq_length(0)
    assert (first > held) == (name in INSIDE)


@ASKED
def test_other_caches_say_the_same(kind: str, name: str) -> None:
    model = whole(kind)
    given = CHATS[kind].batch.given(model)
    with method(name).attach(model):
        told = answer(model, given)
        assert torch.equal(answer(model, given, cache_implementation="dynamic"), told)
        cache = transformers.DynamicCache(config=model.config.get_text_config())
        assert torch.equal(answer(model, given, **{CACHE: cache}), told)
        # After fastv it is refused: layers of different lengths.
        if name not in INSIDE and CHATS[kind].static:
            assert torch.equal(answer(model, given, cache_implementation="static"), told)


@pytest.mark.parametrize(("kind", "name"), [case for case in FIRST if CHATS[case[0]].assisted])
def test_assisted_by_a_model_that_is_often_wrong(kind: str, name: str) -> None:
    model, helper = whole(kind), copy.deepcopy(whole(kind))
    with torch.no_grad():
        helper.lm_head.weight.add_(0.3 * torch.randn_like(helper.lm_head.weight))
        helper.lm_head.weight[: len(hf.SPECIAL)] = 0
    given = CHATS[kind].single(model)
    with method(name).attach(model):
        told = answer(model, given)
        assert torch.equal(answer(model, given, assistant_model=helper), told)
        with method(name).attach(helper):
            assert torch.equal(answer(model, given, assistant_model=helper), told)
    assert remains(helper) == []
