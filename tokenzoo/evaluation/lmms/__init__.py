"""A model of lmms-eval with a recipe attached: public benchmarks of vision-language models.

    lmms-eval --model tokenzoo_hf --model_args pretrained=CHECKPOINT,recipe=evoprune,keep=0.25 --tasks ...

`arguments` reads `--model_args`; `chat` loads the model, attaches the recipe and answers; `requests` has
the rules for batches and answers; `model` is the class that lmms-eval calls, and the only file that
needs lmms-eval at import.
"""

from __future__ import annotations

from typing import Any

from tokenzoo._core.needs import need

NAME = "tokenzoo_hf"
"""The name for `--model`."""


def manifest() -> Any:
    """Return what lmms-eval registers: `NAME`, and the path of its class.

    The entry point of the group `lmms_eval.models`. lmms-eval loads all entry points of the group at start,
    and one that raises hides all others, so the class itself is imported only when it is used.
    """
    registry = need("lmms_eval.models.registry_v2", "lmms-eval")
    return registry.ModelManifest(NAME, chat_class_path=f"{__name__}.model.TokenzooHF")
