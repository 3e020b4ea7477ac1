"""Any-resolution images: the bare model's counts, and our rule for crops that are no grids."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenzoo_adapters.hf.vlm import anyres as packing
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan

from tests.adapters.hf import models as hf
from tokenzoo.errors import BadArgumentError

MODELS = {make.__name__: make for make in (hf.llava_next, hf.llava_onevision)}
BARE = {
    "llava_next": transformers.LlavaNextModel,
    "llava_onevision": transformers.LlavaOnevisionModel,
}
# Sizes that no crops in a row can be, so that whole crops can be letterbox.
SQUARES = [[3 * 56, 3 * 56], [4 * 56, 2 * 56]]


def configuration(name: str, crops: str) -> Any:
    """The published sizes (a tower of 24 x 24 or 27 x 27 tokens), or those of the small models here."""
    kind = {"llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}[name]
    config = getattr(transformers, f"{kind}Config")()
    if crops != "published":
        config.vision_config.image_size, config.vision_config.patch_size = hf.SIDE, hf.PATCH
        config.image_grid_pinpoints = SQUARES if crops == "squares" else hf.GRIDS
        if name == "llava_onevision":
            config.vision_aspect_ratio = "anyres_max_2"
    return config


CONFIGS = {
    (name, crops): configuration(name, crops)
    for name in MODELS
    for crops in ("published", "small", "squares")
}

lengths = st.one_of(st.integers(1, 60), st.integers(1, 4000))
sizes = st.tuples(lengths, lengths)
# Very flat and very tall ones, exact fits, and two whose scaled length is just below an integer.
extremes = [(1, 1), (1, 4000), (4000, 1), (336, 672), (673, 336), (384, 2304), (88, 55), (55, 176)]


def with_extremes(test: Any) -> Any:
    for size in extremes:
        test = example(size=size)(test)
    return test


def bare(name: str, config: Any, size: tuple[int, int], features: torch.Tensor) -> torch.Tensor:
    """What the model's own function makes of the crops of one image `[crops, N, c]`."""
    first: dict[str, Any] = {"vision_feature_select_strategy": "full"}
    packed, _ = BARE[name].pack_image_features(
        SimpleNamespace(config=config),  # it reads nothing else of the model
        [features],
        torch.tensor([size]),
        image_newline=torch.full((features.shape[-1],), -1.0),
        **(first if name == "llava_next" else {"vision_aspect_ratio": config.vision_aspect_ratio}),
    )
    return packed[0]


def crops_of(config: Any, size: tuple[int, int]) -> int:
    return 1 + sum(map(len, packing.crop_layout(config, size, True)))


def side_of(config: Any) -> int:
    return config.vision_config.image_size // config.vision_config.patch_size


def real_processor(name: str, crops: str) -> Any:
    """The processor for one of the configurations above."""
    config = CONFIGS[name, crops]
    made = hf.processor(MODELS[name]())
    made.image_processor.image_grid_pinpoints = config.image_grid_pinpoints
    if name == "llava_next":
        made.patch_size = config.vision_config.patch_size
    else:
        made.num_image_tokens = side_of(config) ** 2
        made.vision_aspect_ratio = config.vision_aspect_ratio
    return made


@pytest.mark.parametrize(("name", "crops"), CONFIGS)
def test_as_many_tokens_as_the_bare_model_packs_and_its_processor_writes(
    name: str, crops: str
) -> None:
    config, processor = CONFIGS[name, crops], real_processor(name, crops)
    n, crop = side_of(config) ** 2, config.vision_config.image_size
    cls = 1 if name == "llava_next" else 0  # counted, and taken off again by strategy "default"

    @given(sizes)
    @with_extremes
    def check(size: tuple[int, int]) -> None:
        ones = torch.ones(crops_of(config, size), n, 1)
        packed = bare(name, config, size, ones)
        assert packing.full_tokens(config, size, True) == len(packed)
        assert processor._get_number_of_features(*size, crop, crop) - cls == len(packed)
        # Of an image of N patches a newline comes after each line.
        newlines = int((packed < 0).sum())
        seen = packing.visual(config, size, True, n, n)
        assert seen == VisualSpan(len(packed), len(packed), seen.units, newlines, n, len(ones))

    check()


@pytest.mark.parametrize("name", MODELS)
def test_an_image_that_is_not_cut(name: str) -> None:
    config, size = CONFIGS[name, "small"], (300, 200)
    packed = bare(name, config, size, torch.ones(1, 64, 1))
    assert packing.full_tokens(config, size, False) == len(packed) == 65
    assert packing.visual(config, size, False, 64, 64) == VisualSpan(65, 65, 1, 1, 64, 1)
    assert packing.visual(config, size, False, 64, 16) == VisualSpan(65, 17, 1, 1, 64, 1)


@given(st.integers(1, 40))
def test_pooling_halves_a_grid(side: int) -> None:
    sides = SimpleNamespace(image_size=side * 2 + 1, patch_size=2)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=sides))
    pooled = transformers.LlavaOnevisionModel.apply_pooling(model, torch.ones(1, side * side, 1))
    assert packing.pooled(side * side) == pooled.shape[1]


@pytest.mark.parametrize(("name", "crops"), CONFIGS)
def test_packing_has_the_length_that_was_said(name: str, crops: str) -> None:
    config = CONFIGS[name, crops]
    n = side_of(config) ** 2

    @given(sizes, st.integers(1, n - 1))
    def check(size: tuple[int, int], m: int) -> None:
        count = crops_of(config, size)
        where = packing.layout(config, size, count)
        assert where == packing.crop_layout(config, size, True)
        packed = packing.pack(torch.ones(count, m, 1), where, torch.zeros(1))
        said = packing.visual(config, size, True, n, m)
        assert said.short == len(packed)
        assert said.full == packing.full_tokens(config, size, True)
        # Each crop gives as many; the rest are newlines, which are no token of any of them.
        assert said.short == said.units * m + said.fixed
        assert said.fixed == int((packed == 0).sum())
        assert said.patches == n

    check()


@pytest.mark.parametrize(("name", "crops"), CONFIGS)
def test_a_crop_is_left_out_where_the_bare_model_keeps_nothing_of_it(name: str, crops: str) -> None:
    """The crops are numbered, so that the bare model says itself which it keeps some of."""
    config = CONFIGS[name, crops]
    n = side_of(config) ** 2
    if name == "llava_onevision":  # not shrunk: numbers would be mixed
        config = configuration(name, crops)
        config.vision_aspect_ratio = "anyres_max_999"

    @given(sizes)
    @with_extremes
    def check(size: tuple[int, int]) -> None:
        where = packing.crop_layout(config, size, True)
        count = crops_of(config, size)
        numbers = torch.arange(float(count))[:, None, None].expand(-1, n, 1)
        kept = set(bare(name, config, size, numbers)[n:].flatten().tolist()) - {-1.0}
        shown = [some for row in where for some in row]
        assert {i + 1.0 for i, some in enumerate(shown) if some} == kept

    check()


def test_the_order_of_what_is_packed() -> None:
    """A base and 2 x 3 crops, of 2 tokens each."""
    features = torch.arange(14.0).view(7, 2, 1).repeat(1, 1, 3).requires_grad_()
    newline = torch.full((3,), -1, dtype=torch.float64)
    where = ((True, False, True), (True, True, True))
    packed = packing.pack(features, where, newline)
    assert packed[:, 0].tolist() == [0, 1, 2, 3, 6, 7, -1, 8, 9, 10, 11, 12, 13, -1]
    assert packed.shape == (14, 3)
    assert packed.dtype == features.dtype
    packed.sum().backward()
    assert features.grad is not None
    assert features.grad[:, 0, 0].tolist() == [1, 1, 0, 1, 1, 1, 1]
    none = packing.pack(features, ((False,) * 3, (True,) * 3), newline)
    assert none[:, 0].tolist() == [0, 1, 8, 9, 10, 11, 12, 13, -1]
    assert packing.pack(features[:1], (), newline)[:, 0].tolist() == [0, 1, -1]


@pytest.mark.parametrize("said", ["pad", "anyres", "anyres_max_", "anyres_max_0", "anyres_max_x"])
def test_an_aspect_ratio_that_says_no_number(said: str) -> None:
    config = configuration("llava_onevision", "small")
    config.vision_aspect_ratio = said
    text = f"vision_aspect_ratio={said!r} of the model's config; it must be 'anyres_max_N'"
    with pytest.raises(BadArgumentError, match=re.escape(text)):
        packing.full_tokens(config, (300, 200), True)
    assert packing.full_tokens(config, (300, 200), False) == 65  # which does not ask for it


def test_another_number_of_crops() -> None:
    for count in (2, 3, 5):
        with pytest.raises(BadArgumentError, match=f"1000 pixels has 4 crops.*, but {count} were"):
            packing.layout(CONFIGS["llava_next", "small"], (400, 1000), count)
    for where, count in (((True, True),), 2), ((), 3):
        with pytest.raises(BadArgumentError, match=f"{count} crops were passed; this layout has"):
            packing.pack(torch.ones(count, 4, 1), where, torch.ones(1))
