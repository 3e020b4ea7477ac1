"""A recipe in vLLM, through its Transformers backend: `vllm serve --model-impl transformers`.

vLLM calls `register` in each of its processes, as an entry point of the group `vllm.general_plugins`. If
the environment names a recipe, the class of the backend is replaced by ours (`model`), and any other class
is refused. vLLM sizes a prompt before an image is encoded; `counts` takes the sizes from our plan. `recipe`
reads the file and says what cannot be served, `positions` has the coordinates of M-RoPE, `processor` and
`model` are what vLLM calls. Nothing here imports vLLM at import, except these last two.
"""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

from tokenzoo.errors import AttachError
from tokenzoo_adapters.vllm.engine import check_version, imported
from tokenzoo_adapters.vllm.recipe import VARIABLE, served

BACKEND = "TransformersMultiModalForCausalLM"
"""The class of vLLM's Transformers backend for models that read images."""

OURS = "TokenzooMultiModalForCausalLM"

_MARK = "_tokenzoo"


def register() -> None:
    """Have vLLM serve with the recipe that the environment names; without one nothing is changed.

    Raises:
        MissingDependencyError: vLLM is not installed.
        BadArgumentError: the file is not a recipe.
        AttachError: the recipe cannot be served, or this version of vLLM cannot.
    """
    if not os.environ.get(VARIABLE):
        return
    served()
    check_version()
    registry: Any = imported("vllm", "ModelRegistry")
    registry.register_model(BACKEND, f"{__name__}.model:{OURS}")
    if "resolve_model_cls" not in vars(registry):
        registry.resolve_model_cls = _only_ours(registry.resolve_model_cls)
    if imported("vllm.platforms", "current_platform").is_cpu():
        _complete(imported("vllm.v1.worker.cpu_model_runner", "CPUModelRunner"))


def _only_ours(resolve: Any) -> Any:
    """Refuse every class of a model but ours: it would serve without the recipe."""

    @wraps(resolve)
    def checked(*args: Any, **options: Any) -> Any:
        found = resolve(*args, **options)
        if found[0].__name__ != OURS:
            raise AttachError(
                f"{VARIABLE} asks for a recipe, and vLLM serves this model with its class "
                f"{found[0].__name__}, which tokenzoo does not follow: add --model-impl transformers for a "
                f"model that reads images, or unset {VARIABLE}"
            )
        return found

    return checked


def _complete(runner: Any) -> None:
    """Have the runner of the CPU do what that of GPUs does.

    It tries no image at start, so the recipe is proved when the model is loaded; and it does not ask where
    the tokens that are left are.
    """
    theirs = runner.load_model
    if getattr(theirs, _MARK, False):
        return

    @wraps(theirs)
    def load_model(self: Any, *args: Any, **options: Any) -> Any:
        result = theirs(self, *args, **options)
        self.get_model().prove_recipe()
        self.is_multimodal_pruning_enabled = bool(self.uses_mrope)
        return result

    setattr(load_model, _MARK, True)
    runner.load_model = load_model
