"""What `generate` calls with ids sees the caller's prompt: processors, criteria, functions, streamers."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import CACHE, answer, cache_of, remains
from tests.conformance.chats import CHATS, moved, said, whole
from tokenzoo.errors import AttachError

KINDS = ("llava", "llava, wordy", "llava_next", "llava_onevision", "qwen2_vl")
WAYS: tuple[dict[str, Any], ...] = (
    {"num_beams": 3},
    {"num_return_sequences": 2, "do_sample": True},
)
SAYS = list(range(len(hf.SPECIAL), len(hf.WORDS)))


class Seen(transformers.LogitsProcessor, transformers.StoppingCriteria):
    """A processor, a criterion and a streamer that remembers the ids that it sees."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.rows: list[tuple[int, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        self.ids.append(input_ids.clone())
        return scores if isinstance(scores, Tensor) else torch.zeros(len(input_ids)).bool()

    def allowed(self, index: int, ids: Tensor) -> list[int]:
        self.rows.append((index, ids.clone()))
        return SAYS

    def put(self, value: Tensor) -> None:
        self.ids.append(value)

    def end(self) -> None: ...


def batch(kind: str) -> tuple[Any, Any]:
    """The model of that name, and a padded batch of prompts."""
    return whole(kind), CHATS[kind].batch.given(whole(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_see_what_they_see_in_the_bare_model(kind: str) -> None:
    model, given = batch(kind)
    n = given["input_ids"].shape[1]
    prompts: list[tuple[Any, ...]] = []
    for name in ("bare", "evoprune", "dart"):
        with nullcontext() if name == "bare" else tokenzoo.build(name, keep=0.5).attach(model):
            for way in WAYS:
                process, stop, allow = Seen(), Seen(), Seen()
                answer(
                    model,
                    given,
                    max_new_tokens=2,
                    logits_processor=[process],
                    stopping_criteria=[stop],
                    prefix_allowed_tokens_fn=allow.allowed,
                    **way,
                )
                assert [ids.shape[1] - n for ids in process.ids] == [0, 1]
                assert [ids.shape[1] - n for ids in stop.ids] == [1, 2]
                indices, rows = zip(*allow.rows, strict=True)
                seen = (*process.ids, *stop.ids, *(row[None] for row in rows))
                prompts.append((indices, [ids[:, :n].tolist() for ids in seen]))
    assert prompts == prompts[: len(WAYS)] * 3


RULES: tuple[dict[str, Any], ...] = (  # together where no rule hides another
    {
        "repetition_penalty": 1.5,
        "encoder_repetition_penalty": 1.5,
        "encoder_no_repeat_ngram_size": 2,
        "sequence_bias": [[[hf.IMAGE, hf.IMAGE, SAYS[3]], 5.0], [[SAYS[4]], 2.0]],
        "bad_words_ids": [[SAYS[5], SAYS[6]], [SAYS[7]]],
        "min_length": 2,  # and the columns of the prompt
    },
    {"no_repeat_ngram_size": 1, "min_new_tokens": 1, "begin_suppress_tokens": [SAYS[8]]},
    {"exponential_decay_length_penalty": (0, 1.5)},
    {"forced_eos_token_id": SAYS[9]},
)


@pytest.mark.parametrize(
    ("kind", "mask"), [("llava, wordy", True), ("qwen2_vl", True), ("llava", False)]
)
def test_penalties_of_a_configuration_are_those_of_the_callers_prompt(
    kind: str, mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the bare model's processors make of the logits, with the caller's ids, is what comes back."""
    model, given = batch(kind)
    if not mask:
        given = dict(CHATS[kind].single(model))
        del given["attention_mask"]
    n = given["input_ids"].shape[1]
    original = type(model)._get_logits_processor
    made: list[Any] = []

    def collect(*args: Any, **kwargs: Any) -> Any:
        made.append(original(*args, **kwargs))
        return made[-1]

    end = {"eos_token_id": SAYS[0], "max_new_tokens": 2}
    ways = [{**end, **rule} for rule in RULES]
    ways[0]["min_length"] += n
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "_get_logits_processor", collect)
        for way in ways:
            answer(model, given, **way)
    with tokenzoo.build("evoprune", keep=0.5).attach(model):
        for way, processors in zip(ways, made, strict=True):
            out = said(model, given, **way, output_scores=True)
            changed = 0.0
            for i, (raw, scores) in enumerate(zip(out.logits, out.scores, strict=True)):
                expected = processors(out.sequences[:, : n + i], raw.clone())
                assert torch.equal(expected, scores), (way, i)
                changed += float((raw - scores).nan_to_num().abs().max())
            assert changed > 0, way  # the rule acts, or nothing is shown


def test_a_criterion_of_length_counts_the_callers_prompt() -> None:
    """Whether it is the caller's own or one that transformers makes; the caller's takes its place."""
    model, given = batch("llava")
    n = given["input_ids"].shape[1]
    with tokenzoo.build("tome", keep=0.5).attach(model):
        own = [transformers.MaxLengthCriteria(n + 2)]
        assert answer(model, given, max_new_tokens=4).shape[1] == 4
        assert answer(model, given, max_new_tokens=4, stopping_criteria=own).shape[1] == 2


@pytest.mark.parametrize("also", [None, "evoprune", "fastv"])
def test_callbacks_of_a_helper_see_the_callers_prompt(also: str | None) -> None:
    """Assisted generation hands the processors to the model that drafts, which reads the short prompt."""
    model, helper = whole("llava"), copy.deepcopy(whole("llava"))
    given = CHATS["llava"].single(model)
    ids = given["input_ids"]
    with tokenzoo.build("evoprune", keep=0.5).attach(model):
        if also is not None:
            tokenzoo.build(also, keep=0.5).attach(helper)
        process, allow = Seen(), Seen()
        rule = {"logits_processor": [process], "prefix_allowed_tokens_fn": allow.allowed}
        rule |= {"repetition_penalty": 1.3}
        expected = answer(model, given, **rule)
        alone = len(process.ids)
        assert torch.equal(answer(model, given, assistant_model=helper, **rule), expected)
    assert len(process.ids) > 2 * alone  # the helper has called it, too
    n = ids.shape[1]
    assert all(torch.equal(rows[:, :n], ids) for rows in process.ids)
    assert all(torch.equal(row[:n], ids[0]) for _, row in allow.rows)


@pytest.mark.parametrize("kind", ["llava", "llava_onevision", "qwen2_vl"])
def test_callbacks_see_a_conversation(kind: str) -> None:
    """The second turn goes on with a cache, and only the new words are read."""
    model, given = batch(kind)
    with tokenzoo.build("tome", keep=0.5).attach(model):
        first = said(model, given, max_new_tokens=2)
        turn = moved(
            given, torch.cat([first.sequences[:, -2:], first.sequences[:, -2:].flip(1)], 1)
        )
        ids, process, stop = turn["input_ids"], Seen(), Seen()
        model.generate(
            ids,
            attention_mask=turn["attention_mask"],
            **{CACHE: cache_of(first)},
            max_new_tokens=2,
            do_sample=False,
            logits_processor=[process],
            stopping_criteria=[stop],
        )
    seen = process.ids + stop.ids
    assert sorted(rows.shape[1] - ids.shape[1] for rows in seen) == [0, 1, 1, 2]
    assert all(torch.equal(rows[:, : ids.shape[1]], ids) for rows in seen)


@pytest.mark.parametrize("kind", ["llava", "llava, wordy", "qwen2_vl"])
def test_a_streamer_sees_what_the_bare_model_would_show(kind: str) -> None:
    model, given = batch(kind)
    several = {"num_return_sequences": 2, "do_sample": True, "max_new_tokens": 1}
    bare, stream = Seen(), Seen()
    answer(model, given, streamer=bare, **several)
    with tokenzoo.build("tome", keep=0.5).attach(model):
        out = answer(model, given, streamer=stream, **several)
    assert torch.equal(stream.ids[0], bare.ids[0])
    assert torch.equal(stream.ids[1], out[:, 0])


def test_a_copy_has_callbacks_of_its_own_and_detach_leaves_none() -> None:
    model, given = batch("llava")
    n = given["input_ids"].shape[1]
    with tokenzoo.build("tome", keep=0.5).attach(model):
        twin = copy.deepcopy(model)
    assert remains(model) == []
    seen = Seen()
    answer(twin, given, logits_processor=[seen], max_new_tokens=1)
    assert [rows.shape[1] for rows in seen.ids] == [n]


def test_a_transformers_that_collects_them_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, given = batch("llava")
    with monkeypatch.context() as patch:
        patch.delattr(transformers.GenerationMixin, "_get_stopping_criteria")
        zoo, refused = tokenzoo.build("tome", keep=0.5), r"no _get_stopping_criteria.*Install"
        with zoo.attach(model), pytest.raises(AttachError, match=refused):
            answer(model, given)
    assert remains(model) == []
