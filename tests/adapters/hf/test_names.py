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
from tests.adapters.hf.decoder.test_methods import eager
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import CACHES, PADDED, SINGLE, answer, cache_of, logits, whole
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import AttachError

RECIPES = ("evoprune", "fastv")  # before the language model, and in it


def _names(path: Path) -> set[str]:
    """The words that a file writes as strings, and the attributes that it reads."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    words = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return words | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def test_no_other_file_knows_a_name() -> None:
    folder = Path(str(tokenzoo_adapters.__file__)).parent
    known = set(hf_names.CACHES)
    for name in ("EMBEDS", "FEATURES", "MASK", "POSITIONS", "ANGLES", "ENCODED", "LAST", "POOLED"):
        known.add(getattr(hf_names, name))
    folder = folder / "hf"
    assert known <= _names(folder / "names.py")
    others = {str(path): _names(path) & known for path in folder.rglob("*.py")}
    del others[str(folder / "names.py")]
    assert {path: found for path, found in others.items() if found} == {}


def _layer(model: Any, given: Any, **more: Any) -> Any:
    language = model.model.language_model
    x = language.embed_tokens(given["input_ids"])
    return language.layers[2](x, position_embeddings=None, **more)


def _language(model: Any, given: Any, **more: Any) -> Any:
    language = model.model.language_model
    return language(inputs_embeds=language.embed_tokens(given["input_ids"]), **more)


CALLS = {
    "forward": lambda model, given, **more: model(**given, **more),
    "generate": lambda model, given, **more: answer(model, given, **more),
    "language": _language,
    "layer": _layer,
}


@pytest.mark.parametrize(
    ("call", "recipe"),
    [(call, name) for call in ("forward", "generate") for name in RECIPES]
    + [("language", "fastv"), ("layer", "fastv")],
)
def test_a_cache_under_another_name_is_an_error(call: str, recipe: str) -> None:
    model = whole("llava")
    given, cache = SINGLE.given(model), DynamicCache()
    with tokenzoo.build(recipe, keep=0.25).attach(model):
        said = answer(model, given)
        for more in ({"kv": cache}, {"kv": {"its": cache}}, {"kv": [cache]}):
            with pytest.raises(
                AttachError, match=r"a cache as kv; .* transformers \d.* 5\.20 to 5"
            ):
                CALLS[call](model, given, **more)
        wrong = {CACHES[0]: cache, CACHES[1]: DynamicCache()}
        with pytest.raises(AttachError, match="two caches, cache and past_key_values"):
            CALLS[call](model, given, **wrong)
        with pytest.raises(AttachError, match="cache is a tuple; it must be a cache"):
            CALLS[call](model, given, cache=((torch.zeros(1), torch.zeros(1)),))
        assert torch.equal(answer(model, given), said)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_known_name_is_the_same_cache(kind: str, recipe: str) -> None:
    """By name, by both names, with an empty one, by position, and out of a tuple."""
    model = whole(kind) if kind == "llava" else qwen.qwen2_vl()
    given = SINGLE.given(model) if kind == "llava" else _qwen(model)
    ids, mask = given["input_ids"], given["attention_mask"]
    word = {"input_ids": ids[:, -1:]}
    if kind == "llava":
        word["attention_mask"] = torch.cat([mask, mask[:, -1:]], 1)
    new, old = CACHES
    with tokenzoo.build(recipe, keep=0.5).attach(model), torch.no_grad():

        def cache(**more: Any) -> Any:
            return model(**given, use_cache=True, **more)

        def after(**more: Any) -> Any:
            return logits(model, word, **more)

        wanted = after(**{new: cache_of(cache())})
        found = [after(**{old: cache_of(cache())}), after(**{old: cache_of(cache()), new: None})]
        both = cache_of(cache())
        found.append(after(**{new: both, old: both}))
        alone = cache(return_dict=False)
        kept = next(value for value in alone if hf_names.is_cache(value))
        found.append(after(**{new: kept}))
        names = hf_names.takes(type(model)).names
        order = [None] * (1 + max(names.index(name) for name in names if name in CACHES))
        order[-1] = cache_of(cache())
        for name, value in word.items():
            order[names.index(name)] = value
        found.append(model(*order).logits)
    assert [gap(one, wanted) for one in found] == [0.0] * len(found)


def _qwen(model: Any) -> Any:
    return qwen.inputs(model, "what is in <image> ?", [qwen.photos()[0]])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_cache_that_comes_back_under_another_name(recipe: str) -> None:
    model = whole("llava")
    given = SINGLE.given(model)

    def renamed(model: Any, args: Any, output: Any) -> Any:
        return {"logits": output.logits, "kv": cache_of(output)}

    handle = model.register_forward_hook(renamed)
    try:
        with (
            tokenzoo.build(recipe, keep=0.25).attach(model),
            pytest.raises(AttachError, match=r"a DynamicCache in its field 'kv'"),
        ):
            model(**given, use_cache=True)
    finally:
        handle.remove()


def test_what_acts_as_a_cache_is_one() -> None:
    class Cache:
        """By its name."""

    class Mine(Cache):
        """By that of its class."""

    class Acts:
        """By what it does."""

        get_seq_length = update = None

    caches = (
        Mine(),
        Acts(),
        DynamicCache(),
        transformers.StaticCache.__new__(transformers.StaticCache),
    )
    assert all(map(hf_names.is_cache, caches))
    assert not any(map(hf_names.is_cache, (None, {}, torch.zeros(1), 1, "cache", [DynamicCache()])))


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fastv": ("fastv", {}),
    "dart": ("dart", {}),
    "pyramiddrop": ("pyramiddrop", {"layers": (1, 2, 3)}),
    "sparsevlm": ("sparsevlm", {"layers": (1, 2, 3)}),
    "vscan": ("vscan", {"layer": 2, "shallow": 1, "deep": -2, "window": 4}),
}


# The tower of Qwen2-VL has no CLS token, by which the first step of vscan chooses.
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("llava", "qwen2_vl")
        for name in METHODS
        if (kind, name) != ("qwen2_vl", "vscan")
    ],
)
def test_logits_with_a_cache_are_those_without(kind: str, name: str) -> None:
    """Every step of an answer: alone and padded, and padded with eager attention."""
    method, options = METHODS[name]
    if kind == "qwen2_vl" and method in ("pyramiddrop", "sparsevlm"):
        options = {**options, "positions": "keep"}
    model = eager(kind)
    if kind == "llava":
        single, padded = SINGLE.given(model), PADDED.given(model)
    else:
        single, padded = _qwen(model), qwen.batch(model)
    for attention, given in (("eager", padded), ("sdpa", padded), ("sdpa", single)):
        model.set_attn_implementation(attention)
        say = {"max_new_tokens": 4, "do_sample": False}
        say |= {"output_logits": True, "return_dict_in_generate": True}
        try:
            bare = model.generate(**given, **say)
            with tokenzoo.build(method, keep=0.5, **options).attach(model):
                cached = model.generate(**given, **say)
                anew = model.generate(**given, **say, use_cache=False)
        finally:
            model.set_attn_implementation("eager")
        assert gap(torch.stack(cached.logits), torch.stack(anew.logits)) <= 1e-4
        assert cache_of(cached).get_seq_length(0) >= cache_of(cached).get_seq_length(3)
        assert gap(cached.logits[-1], bare.logits[-1]) > 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the method that turns it on
@pytest.mark.parametrize("recipe", ["fastv", "pyramiddrop"])
def test_a_cache_that_checkpointed_layers_leave_alone(recipe: str) -> None:
    """In training, a layer that is checkpointed neither reads nor writes the cache of its caller."""
    model = hf.llava().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    given, (_, options) = SINGLE.given(model), METHODS[recipe]
    with tokenzoo.build(recipe, keep=8, **options).attach(model):
        losses = [
            model(**given, labels=given["input_ids"], **more).loss
            for more in ({}, {CACHES[0]: DynamicCache()})
        ]
    assert gap(losses[0], losses[1]) == 0.0
