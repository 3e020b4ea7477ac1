"""Models of transformers by type or folder, and the doctor on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.adapters import hf_models as hf
from tests.adapters.models import one_thread as one_thread
from tokenzoo import from_transformers, towers
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.examining import examine
from tokenzoo.runtime.attach import find_adapter

BUILDERS = {"llava": hf.llava, "llava_next": hf.llava_next, "llava_onevision": hf.llava_onevision}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each tiny whole model, and of two towers."""
    made: dict[str, str] = {}
    models = {name: build() for name, build in BUILDERS.items()}
    models |= {name: hf.tower(name) for name in ("clip", "siglip2")}
    for name, model in models.items():
        path: Path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        made[name] = str(path)
    return made


@pytest.mark.parametrize("recipe", ["evoprune", "divprune", "fastv"])
@pytest.mark.parametrize("name", list(BUILDERS))
def test_a_whole_model_from_its_folder(folders: dict[str, str], name: str, recipe: str) -> None:
    verdict = examine(folders[name], recipe=recipe, keep=0.5)
    assert (verdict.verdict, verdict.reason) == ("works", "")
    assert verdict.family == type(BUILDERS[name]()).__name__
    assert verdict.identity == 0
    assert verdict.change is not None
    assert verdict.change > 1e-3
    assert bool(verdict.counts) == (recipe != "fastv")


@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_a_tower_from_its_folder(folders: dict[str, str], name: str) -> None:
    verdict = examine(folders[name], keep=0.5, depth=3)
    assert (verdict.verdict, verdict.reason) == ("works", "")
    assert len(verdict.counts) == 3
    assert verdict.counts == verdict.planned
    assert (verdict.tokens, verdict.counts[-1]) == (64, 32)


def test_a_recipe_that_does_not_fit_is_refused(folders: dict[str, str]) -> None:
    verdict = examine(folders["llava_onevision"], recipe="fastervlm")
    assert verdict.verdict == "refused"
    assert "cls_attention" in verdict.reason


def test_only_the_configuration_is_read(folders: dict[str, str]) -> None:
    """The language model is a small one, whatever the checkpoint has; the weights are random."""
    model = towers.create(folders["llava"]).model
    assert model.config.text_config.hidden_size == 64
    assert len(model.model.vision_tower.encoder.layers) == 6
    assert (
        len(towers.create(folders["llava"], depth=2).model.model.vision_tower.encoder.layers) == 2
    )


def test_the_prompt_has_the_models_own_placeholders() -> None:
    for build in BUILDERS.values():
        model = build()
        given = from_transformers.inputs(model, find_adapter(model), 2)
        with torch.no_grad():
            logits = model(**given).logits
        assert logits.shape[:2] == given["input_ids"].shape


def test_types_and_what_is_none() -> None:
    assert {"llava", "clip_vision_model", "siglip_vision_model"} <= set(from_transformers.names())
    with pytest.raises(UnknownNameError, match=r"no model 'llavaa'; the nearest are .*llava"):
        towers.create("transformers:llavaa")
    with pytest.raises(BadArgumentError, match="cannot make 'clip_vision_model'"):
        towers.create("transformers:clip_vision_model", hidden_size=33)


def test_another_type_is_refused_by_name() -> None:
    verdict = examine("transformers:bert")
    assert verdict.verdict == "refused"
    assert "BertModel is not followed" in verdict.reason
    assert "LlavaForConditionalGeneration" in verdict.reason
