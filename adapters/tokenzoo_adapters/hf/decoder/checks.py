"""What cannot be reduced in a language model, and why: checks before anything is installed or decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenzoo.errors import AttachError, UnsupportedModelError
from tokenzoo.mergers import Identity
from tokenzoo.parts import Assigner, walk
from tokenzoo_adapters.hf import attention as hf_attention
from tokenzoo_adapters.hf.decoder.language_model import MROPE, SUPPORTED, LanguageModel
from tokenzoo_adapters.hf.decoder.steps import FROM_ATTENTION, DecoderSteps
from tokenzoo_adapters.hf.names import cache_of, is_static

STATIC = (
    "{what} with a recipe that works in the language model ({where}): it has one length for all layers, "
    "and theirs differ. Leave it out, or take a recipe that reduces before the language model"
)


def check_decoder(language: Any, name: str) -> None:
    """Raise if the language model of a model has no decoder layers.

    Args:
        language: the language model.
        name: of the whole model's class, for the message.

    Raises:
        UnsupportedModelError: it has none.
    """
    if not hasattr(language, "layers"):
        raise UnsupportedModelError(
            f"{name} has the language model {type(language).__name__}, which has no decoder layers"
        )


def check_steps(language: LanguageModel, steps: DecoderSteps, adds: int = 0) -> None:
    """Raise if a language model cannot be reduced by these steps, as far as can be read off it.

    Args:
        language: the language model.
        steps: of the recipe.
        adds: the number of its first layers after which it adds features to visual tokens.

    Raises:
        AttachError: its class is not supported, or a step does not fit it; says which.
    """
    kinds: set[str] = set(getattr(language.config, "layer_types", None) or ())
    if "linear_attention" in kinds:
        raise AttachError(
            f"the language model {language.kind} cannot be reduced at the stage 'llm': layers with linear "
            "attention keep one state of all tokens so far, from which none can be taken. Use a recipe "
            "that reduces before the language model"
        )
    if language.kind not in SUPPORTED:
        raise AttachError(
            f"the language model {language.kind} is not supported at the stage 'llm'; "
            f"{', '.join(SUPPORTED)} are. Use a recipe that reduces before the language model"
        )
    if steps.need(FROM_ATTENTION):
        hf_attention.check(
            language.module
        )  # before the proof runs an attention that cannot be recorded
    compact = [layer for layer, step in steps.by_layer.items() if step.positions == "compact"]
    if language.kind in MROPE and compact:
        raise AttachError(
            f"positions='compact' at layer {compact[0]} of the language model {language.kind}: visual "
            "tokens keep the time, row and column in their image, which are not renumbered when others "
            "are removed. Make the step with positions='keep'"
        )
    if not kinds and getattr(
        language.config, "sliding_window", None
    ):  # Mistral: one for all layers
        kinds = {"sliding_attention"}
    if kinds - {"full_attention"}:
        raise AttachError(
            f"the language model has layers with {', '.join(sorted(kinds))}: fewer tokens would change "
            "what a window covers. Use a recipe that reduces before the language model"
        )
    for layer, step in steps.by_layer.items():
        if not 1 <= layer < language.depth:
            raise AttachError(
                f"{step.stage!r}: a step in a language model of {language.depth} layers must name one of "
                f"the layers 1 to {language.depth - 1}, whose input is reduced by the evidence of the "
                "layer before: Stage.LLM(2)"
            )
        if layer < adds and not isinstance(step.merger, Identity):
            raise AttachError(
                f"{step.stage!r} merges tokens by {type(step.merger).__name__}, and the language model "
                f"adds features of inner blocks of the tower to each visual token after its first {adds} "
                f"layers (deepstack): merge at layer {adds} or later, or drop tokens, with Identity()"
            )
        if any(isinstance(part, Assigner) and part.extra for part in walk(step.matcher)):
            raise AttachError(
                "this recipe makes new tokens, which have no position in a prompt: choose an assigner that "
                "joins tokens to kept ones"
            )


def check_cache(cache: Any, steps: DecoderSteps) -> None:
    """Raise if a cache has one length for all layers.

    Raises:
        AttachError: it is static.
    """
    if is_static(cache):
        raise AttachError(STATIC.format(what="a static cache", where=steps.names))


def check_generate(given: Mapping[str, Any], steps: DecoderSteps) -> None:
    """Raise if `generate` is to decode in a way that needs one length for the caches of all layers.

    Args:
        given: the arguments of `generate`.
        steps: in the language model.

    Raises:
        AttachError: says which argument.
    """
    config = given.get("generation_config")
    cache = given.get("cache_implementation") or getattr(config, "cache_implementation", None)
    if cache is not None and "dynamic" not in cache and cache != "offloaded":
        raise AttachError(STATIC.format(what=f"cache_implementation={cache!r}", where=steps.names))
    check_cache(cache_of(given, "generate"), steps)
    for name in ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size"):
        if given.get(name) is not None or getattr(config, name, None) is not None:
            raise AttachError(
                f"generate({name}=...) with a recipe that works in the language model ({steps.names}): it "
                "cuts the caches of all layers to one length, but their lengths differ. Leave it out, or "
                "use a recipe that reduces before the language model"
            )
