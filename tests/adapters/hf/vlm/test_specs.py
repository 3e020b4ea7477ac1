"""Every spec names what there is in transformers, and can be copied and pickled."""

from __future__ import annotations

import importlib
import inspect
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenzoo_adapters.hf.vlm.find import find_vision_language
from tokenzoo_adapters.hf.vlm.models import SPECS
from tokenzoo_adapters.hf.vlm.models.llava import LLAVA
from tokenzoo_adapters.hf.vlm.spec import VisionLanguageSpec
from tokenzoo_adapters.hf.vlm.streams import DEEPSTACK

from tests.adapters.hf.models import llava
from tokenzoo.errors import UnsupportedModelError

EACH = pytest.mark.parametrize("spec", SPECS, ids=[spec.folder for spec in SPECS])


def made(spec: VisionLanguageSpec) -> Any:
    """The bare model of a spec, from its default configuration and without weights."""
    module = importlib.import_module(f"transformers.models.{spec.folder}.modeling_{spec.folder}")
    kind = getattr(module, spec.bare)
    assert issubclass(getattr(module, spec.whole), module.GenerationMixin)
    with torch.device("meta"):
        return kind(kind.config_class())


@EACH
def test_the_names_are_those_of_the_model(spec: VisionLanguageSpec) -> None:
    base = made(spec)
    for name in (spec.tower, spec.projector, spec.language):
        assert base.get_submodule(name)
    entries = (spec.reads, spec.select, *spec.settings)
    taken = inspect.signature(type(base).forward).parameters
    for modality in spec.modalities:
        features = inspect.signature(getattr(base, modality.features)).parameters
        assert modality.pixels in taken
        assert modality.pixels in features
        assert not modality.sizes or modality.sizes in features
        entries += (modality.placeholder,)
    assert [name for name in entries if name and not hasattr(base.config, name)] == []
    assert spec.group(base.config) >= 1
    tower = base.get_submodule(spec.tower)
    for stream in spec.streams:
        blocks = getattr(base.config.vision_config, stream.blocks)
        assert blocks == getattr(tower, stream.blocks)
        assert len(getattr(tower, stream.heads)) == len(blocks) == spec.adds(base.config)


@EACH
def test_it_is_copied_by_name(spec: VisionLanguageSpec) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_stream_that_nobody_carries_is_refused() -> None:
    spec = replace(LLAVA, streams=(DEEPSTACK,))
    with pytest.raises(
        UnsupportedModelError, match=r"inner blocks of its vision tower \(deepstack"
    ):
        find_vision_language(llava(), (spec,))
