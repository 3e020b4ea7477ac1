"""The names of the cache: those that are known in every call, and a third is an error, never ignored."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import tokenzoo_adapters
import torch
import transformers
from tokenzoo_adapters.hf import names as hf_names
from transformers import DynamicCache

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import CACHES, SINGLE, answer, cache_of, logits, whole
from tests.adapters.models import gap
from tokenzoo.errors import AttachError

RECIPES = ("evoprune", "fastv")  # before the language model, and in it


def _names(path: Path) -> set[str]:
    """The words that a file writes as strings, and the attributes that it reads."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    words = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return words | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def test_no_other_file_knows_a_name() -> None:
    folder = Path(str(tokenzoo_adapters.__file__)).parent / "hf"
    words = ("EMBEDS", "FEATURES", "MASK", "POSITIONS", "ANGLES", "ENCODED", "LAST", "POOLED")
    known = {*hf_names.CACHES, *(getattr(hf_names, word) for word in words)}
    assert known <= _names(folder / "names.py")
    others = {str(path): _names(path) & known for path in folder.rglob("*.py")}
    del others[str(folder / "names.py")]
    assert {path: found for path, found in others.items() if found} == {}


def layer(model: Any, given: Any, **more: Any) -> Any:
    language = model.model.language_model
    x = language.embed_tokens(given["input_ids"])
    return language.layers[2](x, position_embeddings=None, **more)


def language(model: Any, given: Any, **more: Any) -> Any:
    inside = model.model.language_model
    return inside(inputs_embeds=inside.embed_tokens(given["input_ids"]), **more)


def forward(model: Any, given: Any, **more: Any) -> Any:
    return model(**given, **more)


@pytest.mark.parametrize(
    ("call", "recipe"),
    [
        *((call, name) for call in (forward, answer) for name in RECIPES),
        *((call, "fastv") for call in (language, layer)),
    ],
)
def test_a_cache_under_another_name_is_an_error(call: Any, recipe: str) -> None:
    model = whole("llava")
    given, cache = SINGLE.given(model), DynamicCache()
    with tokenzoo.build(recipe, keep=0.25).attach(model):
        said = answer(model, given)
        bad: list[tuple[dict[str, Any], str]] = [
            *(({"kv": value}, "kv; .* transformers") for value in (cache, {"its": cache}, [cache])),
            ({CACHES[0]: cache, CACHES[1]: DynamicCache()}, "cache and past_key_values"),
            ({"cache": ((torch.zeros(1), torch.zeros(1)),)}, "cache is a tuple"),
        ]
        for more, named in bad:
            with pytest.raises(AttachError, match=named):
                call(model, given, **more)
        assert torch.equal(answer(model, given), said)


def given_to(model: Any, kind: str) -> Any:
    if kind == "llava":
        return SINGLE.given(model)
    return qwen.inputs(model, "what is in <image> ?", [qwen.photos()[0]])


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_known_name_is_the_same_cache(kind: str, recipe: str) -> None:
    """By name, by both names, with an empty one, by position, and out of a tuple."""
    model = whole(kind) if kind == "llava" else qwen.qwen2_vl()
    given = given_to(model, kind)
    mask, word = given["attention_mask"], {"input_ids": given["input_ids"][:, -1:]}
    if kind == "llava":
        word["attention_mask"] = torch.cat([mask, mask[:, -1:]], 1)
    new, old = CACHES
    with tokenzoo.build(recipe, keep=0.5).attach(model), torch.no_grad():

        def cache(**more: Any) -> Any:
            return model(**given, use_cache=True, **more)

        def fresh() -> Any:
            return cache_of(cache())

        both = fresh()
        kept = next(value for value in cache(return_dict=False) if hf_names.is_cache(value))
        ways = ({old: fresh()}, {old: fresh(), new: None}, {new: both, old: both}, {new: kept})
        found = [logits(model, word, **way) for way in ways]
        names = hf_names.takes(type(model)).names
        order = [None] * (1 + max(names.index(name) for name in names if name in CACHES))
        order[-1] = fresh()
        for name, value in word.items():
            order[names.index(name)] = value
        found.append(model(*order).logits)
        wanted = logits(model, word, **{new: fresh()})
    assert [gap(one, wanted) for one in found] == [0.0] * 5


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_cache_that_comes_back_under_another_name(recipe: str) -> None:
    model = whole("llava")
    given = SINGLE.given(model)

    def renamed(model: Any, args: Any, output: Any) -> Any:
        return {"logits": output.logits, "kv": cache_of(output)}

    handle = model.register_forward_hook(renamed)
    with tokenzoo.build(recipe, keep=0.25).attach(model):
        with pytest.raises(AttachError, match="a DynamicCache in its field 'kv'"):
            model(**given, use_cache=True)
        handle.remove()


class Cache:
    """One by its name."""


class Inherits(Cache):
    """One by that of its class."""


class Acts:
    """One by what it does."""

    get_seq_length = update = None


def test_what_acts_as_a_cache_is_one() -> None:
    static = transformers.StaticCache.__new__(transformers.StaticCache)
    assert all(map(hf_names.is_cache, (Inherits(), Acts(), DynamicCache(), static)))
    assert not any(map(hf_names.is_cache, (None, {}, torch.zeros(1), 1, "cache", [DynamicCache()])))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the method that turns it on
@pytest.mark.parametrize(
    ("recipe", "options"), [("fastv", {}), ("pyramiddrop", {"layers": (1, 2, 3)})]
)
def test_a_cache_that_checkpointed_layers_leave_alone(recipe: str, options: Any) -> None:
    """In training, a layer that is checkpointed neither reads nor writes the cache of its caller."""
    model = hf.llava().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    given = SINGLE.given(model)
    with tokenzoo.build(recipe, keep=8, **options).attach(model):
        losses = [
            model(**given, labels=given["input_ids"], **more).loss
            for more in ({}, {CACHES[0]: DynamicCache()})
        ]
    assert gap(losses[0], losses[1]) == 0.0
