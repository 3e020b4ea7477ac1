"""What is tried with which model: the rules at the top of chats.py, against the specs of all models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenzoo_adapters.hf.vlm import models
from tokenzoo_adapters.hf.vlm.spec import VisionLanguageSpec

from tests.adapters.hf.vlm import cosmos
from tests.conformance.chats import CHATS, WAYS

SPECS = {spec.folder: spec for spec in models.SPECS}


def spec_of(kind: str) -> VisionLanguageSpec:
    return SPECS[kind.partition(",")[0].replace("paligemma2", "paligemma")]


def way(spec: VisionLanguageSpec) -> tuple[Any, ...]:
    """All that a spec says of the language model."""
    return spec.positions, spec.first_position, spec.gaps, bool(spec.streams)


def one_kind(spec: VisionLanguageSpec) -> VisionLanguageSpec:
    return replace(spec, folder="", whole="", bare="")


@pytest.mark.parametrize("kind", [kind for kind, chat in CHATS.items() if chat.like])
def test_what_is_like_another_differs_in_names_alone(kind: str) -> None:
    chat = CHATS[kind]
    assert one_kind(spec_of(kind)) == one_kind(spec_of(chat.like))
    assert not CHATS[chat.like].like
    assert len(chat.recipes) == 1 or spec_of(kind) == spec_of(chat.like)


def test_no_model_has_the_spec_of_another_unsaid() -> None:
    own = [one_kind(spec_of(kind)) for kind, chat in CHATS.items() if not chat.like]
    assert [own.count(spec) for spec in own] == [1] * len(own)


@pytest.mark.parametrize("of", [way, lambda spec: bool(spec.unfollowed)])
def test_every_way_of_the_specs_is_tried(of: Callable[[VisionLanguageSpec], Any]) -> None:
    assert {of(spec) for spec in SPECS.values()} == {of(spec_of(kind)) for kind, _ in WAYS.values()}


def test_every_model_is_tried() -> None:
    """But GLM-4.6V, which has the tower and the language model of GLM-4.1V, and what is not installed."""
    missing = set[str]() if cosmos.KNOWN else {"cosmos3_edge"}
    assert {spec_of(kind).folder for kind in CHATS} == SPECS.keys() - {"glm46v"} - missing
