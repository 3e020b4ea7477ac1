"""The clock: what lies between its marks, and that every stage of a recipe calls it."""

from __future__ import annotations

import pytest
import torch

import tokenzoo
from tokenzoo.errors import AttachError
from tokenzoo.hooks.attach import attach
from tokenzoo.tools.benchmark import Sizes, attaching, load
from tokenzoo.tools.benchmark import clock as clocks
from tokenzoo.tools.benchmark.candidates import copy_of
from tokenzoo.tools.benchmark.clock import BEGIN, END, SELECTION, Clock, parts

CPU = torch.device("cpu")
ENCODER, PROJECTOR, LANGUAGE = clocks.ENCODER, clocks.PROJECTOR, clocks.LANGUAGE


def marked(*marks):
    """A clock after a call with these marks."""
    return Clock(CPU, marks=[(BEGIN, 10.0), *marks, (END, 20.0)])


def test_the_parts_of_a_call():
    clock = marked(
        *((ENCODER, 11.0), (SELECTION, 11.5), (SELECTION, 12.0), (ENCODER, 14.0)),
        *((PROJECTOR, 14.5), (SELECTION, 14.75), (SELECTION, 15.0), (PROJECTOR, 15.5)),
        *((LANGUAGE, 16.0), (SELECTION, 17.0), (SELECTION, 18.0), (LANGUAGE, 19.0)),
    )
    assert parts(clock, True, False) == {
        "encoder": 3.0,
        "rest": 4.0,
        "prefill": 3.0,
        "selection": 1.75,
        "encoder_alone": 2.5,
        "rest_alone": 3.75,
        "prefill_alone": 2.0,
        "before_llm": 6.0,
        "first_token": 10.0,
    }


def test_a_projector_inside_the_tower_is_not_the_encoder():
    clock = marked(
        *((ENCODER, 11.0), (PROJECTOR, 13.0), (SELECTION, 13.25), (SELECTION, 13.75)),
        *((PROJECTOR, 14.0), (ENCODER, 14.0), (ENCODER, 14.5), (PROJECTOR, 15.0)),
        *((PROJECTOR, 15.5), (ENCODER, 15.5), (LANGUAGE, 16.0), (LANGUAGE, 19.0)),
    )
    found = parts(clock, True, True)
    assert (found["encoder"], found["encoder_alone"]) == (2.5, 2.5)
    assert (found["rest"], found["rest_alone"]) == (4.5, 4.0)


def test_an_image_encoder_is_one_part():
    found = parts(marked((SELECTION, 12.0), (SELECTION, 15.0)), False, False)
    assert found == {"encoder": 10.0, "selection": 3.0, "encoder_alone": 7.0}
    blind = Clock(CPU, blind=True, marks=[(BEGIN, 0.0), (END, 4.0)])
    assert parts(blind, False, False) == {"encoder": 4.0, "encoder_alone": 4.0}


TOWER = ((ENCODER, 11.0), (ENCODER, 12.0))
LLM = ((LANGUAGE, 13.0), (LANGUAGE, 14.0))


@pytest.mark.parametrize(
    ("marks", "multimodal", "named"),
    [
        (((SELECTION, 12.0),), False, "selection has 1 marks"),
        (TOWER, True, "language model 0 times"),
        ((*TOWER, *LLM, *LLM), True, "language model 2 times"),
        (LLM, True, "tower ran 0 times"),
    ],
)
def test_what_does_not_add_up_is_an_error(marks, multimodal, named):
    with pytest.raises(AttachError, match=named):
        parts(marked(*marks), multimodal, False)


def test_it_runs_in_a_call_alone():
    clock = Clock(CPU)
    clock.tick()
    assert clock.marks == []
    with pytest.raises(ZeroDivisionError):
        clock.call(lambda: 1 / 0)
    clock.tick()
    assert [name for name, _ in clock.marks] == [BEGIN]
    for blind, marks in ((False, [BEGIN, SELECTION, END]), (True, [BEGIN, END])):
        clock.blind = blind
        clock.call(clock.tick)
        assert [name for name, _ in clock.marks] == marks


STAGES = [
    ("clip-l-336", "evoprune", 3),  # every second of 6 blocks
    ("clip-l-336", "visionzip", 1),  # features
    ("llava-1.5-7b", "tome", 6),
    ("llava-1.5-7b", "divprune", 1),  # projected
    ("llava-1.5-7b", "fastv", 1),  # llm
    ("qwen2.5-vl-0.5b", "uniform", 2),  # blocks of a packed tower: photograph and video
    ("qwen2.5-vl-0.5b", "divprune", 2),
    ("qwen2.5-vl-0.5b", "dart", 1),
]


@pytest.mark.parametrize(("name", "recipe", "times"), STAGES)
def test_every_stage_calls_it_before_and_after(name, recipe, times):
    work = load(name, Sizes(tiny=True, frames=2 if "qwen" in name else None))
    order: list[str] = []
    model, zoo = copy_of(work.model), tokenzoo.build(recipe, keep=0.5)
    told = {"clock": lambda: order.append("tick"), "on_reduce": lambda _: order.append("reduced")}
    attach(zoo.recipe, model, **told)
    order.clear()  # what the proof on random tokens did
    work.run(model)()
    assert order == ["tick", "reduced", "tick"] * times


def test_a_compiled_model_has_no_clock():
    work = load("vit-b/16", Sizes(tiny=True, depth=2))
    model, ticks = copy_of(work.model), []
    attached = attaching(tokenzoo.build("tome", keep=0.5))(model, lambda: ticks.append(1))
    ticks.clear()
    with torch.inference_mode():
        torch.compile(model, backend="eager", fullgraph=True)(work.given)
    assert attached is not None
    assert attached.counts[-1] == 25
    assert ticks == []
