"""Which of transformers' models are followed, and what to attach to where a model is not.

transformers is never imported: a model in hand means that it is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenzoo import hookimpl
from tokenzoo.adapter import Adapter
from tokenzoo.errors import UnsupportedModelError
from tokenzoo_adapters.hf.classifiers import AROUND, find_around, unknown
from tokenzoo_adapters.hf.towers import NAMES, HFTower, find_tower
from tokenzoo_adapters.hf.vlm.adapter import find_vision_language
from tokenzoo_adapters.hf.vlm.models import SPECS
from tokenzoo_adapters.hf.vlm.qwen_tower import TOWERS as PACKED
from tokenzoo_adapters.hf.vlm.qwen_tower import find_qwen_tower


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """Know transformers' vision towers; say of its other models what to attach to."""
    found = find_tower(model) or _inside(model) or find_qwen_tower(model)
    found = found or find_vision_language(model, SPECS)
    if found is not None or not type(model).__module__.startswith("transformers."):
        return found
    raise UnsupportedModelError(_refusal(model))


def _inside(model: Any) -> HFTower | None:
    """The tower inside a model of which it is known how it reads the tokens."""
    around = find_around(model)
    if around is None:
        return None
    tower = find_tower(getattr(model, around.tower), at=f"{around.tower}.")
    return None if tower is None else replace(tower, outer=model, around=around)


def _refusal(model: Any) -> str:
    """Why a model is not followed, and what to do."""
    name = f"transformers' {type(model).__name__}"
    inside = [
        path
        for path, module in model.named_modules()
        if find_tower(module) is not None or find_qwen_tower(module) is not None
    ]
    if any(hasattr(module, "deepstack_visual_indexes") for module in model.modules()):
        return (
            f"{name} is not followed: the language model adds the features of inner blocks of the tower to "
            "its own tokens (deepstack), and these blocks have other tokens left. What works on it: "
            "zoo.reduce(features), behind the tower"
        )
    if not inside:
        followed = [*(names.model for names in NAMES.values()), *PACKED.values()]
        followed += [around.model for around in AROUND]
        followed += [spec.whole for spec in SPECS]
        return (
            f"{name} is not followed. Followed are {', '.join(followed)}. What works on it: "
            "zoo.reduce(features), behind the tower"
        )
    reason = "only its vision tower can be reduced"
    why = unknown(model)
    if why:
        return (
            f"{name}: {why}. Attach to the tower inside it: attach(model.{inside[0]}, restore=True)"
        )
    return f"{name}: {reason}. Attach to the tower inside it, model.{inside[0]}, and use what that returns"
