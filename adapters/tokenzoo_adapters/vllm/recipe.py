"""The recipe that a server is started with, and what cannot be served."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.learned import modules
from tokenzoo.recipe import Recipe
from tokenzoo.zoo import Method, load

VARIABLE = "TOKENZOO_RECIPE"
"""The environment variable with the path of a recipe that `Method.save` wrote."""


@dataclass(frozen=True)
class ServedRecipe:
    """A recipe for a server.

    Attributes:
        method: the recipe.
        digest: of its file, a part of the identity of an image in vLLM's caches.
    """

    method: Method
    digest: str


def served() -> ServedRecipe:
    """Read the recipe that the environment names.

    Raises:
        BadArgumentError: none is named, or the file is not a recipe.
        AttachError: it cannot be served; says why.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        raise BadArgumentError(f"{VARIABLE} is not set; it is the path of a recipe, zoo.save(path)")
    return _read(path)


@cache
def _read(path: str) -> ServedRecipe:
    method = load(path)
    check_served(method.recipe)
    return ServedRecipe(method, sha256(Path(path).read_bytes()).hexdigest()[:16])


def check_served(recipe: Recipe) -> None:
    """See that a recipe can be served.

    Raises:
        AttachError: it works in the language model, reads the text, or learns.
    """
    for step in recipe.steps:
        if step.stage.name == "llm":
            raise AttachError(
                f"this recipe works at {step.stage!r}, in the language model, whose cache and attention "
                "are vLLM's own: take a recipe that reduces before it (evoprune, divprune, visionzip, ...)"
            )
        if "text" in step.needs:
            raise AttachError(
                "this recipe chooses tokens by the text of the prompt, and vLLM encodes images without it "
                "and reuses them for other prompts: take a recipe that reads the image alone (evoprune, "
                "divprune, visionzip, ...)"
            )
    if len(modules(recipe.steps)):
        raise AttachError(
            "this recipe has parts that learn, which were not tried in vLLM: take one without, or serve "
            "with transformers"
        )


def check_server(config: Any) -> None:
    """See that a server runs a model in a way that was tried.

    Args:
        config: of the server, vLLM's `VllmConfig`.

    Raises:
        AttachError: it does not; names the option.
    """
    parallel = config.parallel_config
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(parallel, name) > 1:
            raise AttachError(
                f"{name}={getattr(parallel, name)} with a recipe was not tried: start one server a device"
            )
    if config.speculative_config is not None:
        raise AttachError("speculative decoding with a recipe was not tried: leave it out")
    if config.compilation_config.compile_mm_encoder:
        raise AttachError(
            "compile_mm_encoder compiles the vision tower without the recipe: leave it out"
        )
