"""Which of transformers' models are supported, and what to attach to where a model is not.

transformers is never imported: a model in hand means that it is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenzoo import hookimpl
from tokenzoo.adapter import Adapter
from tokenzoo.errors import UnsupportedModelError
from tokenzoo_adapters.hf.classifiers import OUTER_MODELS, find_outer, unknown
from tokenzoo_adapters.hf.tower_names import TOWERS, WINDOWED
from tokenzoo_adapters.hf.towers import HFTower, find_tower
from tokenzoo_adapters.hf.vlm.find import find_vision_language
from tokenzoo_adapters.hf.vlm.models import SPECS
from tokenzoo_adapters.hf.vlm.packed_tower import TOWERS as PACKED
from tokenzoo_adapters.hf.vlm.packed_tower import find_packed_tower
from tokenzoo_adapters.hf.vlm.refusals import AFTER, FOLDERS, reads_images, refusal_of


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """The adapter of a model of transformers; raises for other models of it, with what to attach to."""
    found = find_tower(model) or _inside(model) or find_packed_tower(model)
    found = found or find_vision_language(model, SPECS)
    if found is not None or not _of_transformers(model):
        return found
    raise UnsupportedModelError(_refusal(model))


def _of_transformers(model: Any) -> bool:
    """Whether a model is of transformers, or of a subclass of a model whose reason is known."""
    return type(model).__module__.startswith("transformers.") or refusal_of(model) is not None


def _inside(model: Any) -> HFTower | None:
    """The adapter of the tower in one of `OUTER_MODELS`."""
    entry = find_outer(model)
    if entry is None:
        return None
    tower = find_tower(getattr(model, entry.tower), at=f"{entry.tower}.")
    return None if tower is None else replace(tower, outer=model, outer_class=entry)


def _refusal(model: Any) -> str:
    """Why a model is not supported, and what to do."""
    name = f"transformers' {type(model).__name__}"
    inside = [
        f"model.{path}"
        for path, module in model.named_modules()
        if find_tower(module) is not None or find_packed_tower(module) is not None
    ]
    known = refusal_of(model)
    if known is not None:
        works = known.instead
        if known.tower and inside:
            works = f"attach({inside[0]}, restore=True), inside the tower; or {works}"
        return f"{name} is not supported: {known.why}. What works on it: {works}"
    if reads_images(model):
        return (
            f"{name} is not known to tokenzoo: nobody has written down how its images become tokens of its "
            f"language model. docs/adding-a-model.md says how to add it. What works on it: {AFTER}"
        )
    if any(type(model).__module__.startswith(f"{FOLDERS}{folder}.") for folder in WINDOWED):
        why = "it attends in windows of a fixed grid (SAM)"
        return f"{name} is not supported: {why}. What works on it: {AFTER}"
    if not inside:
        followed = [
            *(names.model for names in TOWERS.values()),
            *(names.model for names in PACKED.values()),
        ]
        followed += [entry.model for entry in OUTER_MODELS]
        followed += [spec.whole for spec in SPECS]
        return f"{name} is not supported. Supported are {', '.join(followed)}. What works on it: {AFTER}"
    why = unknown(model)
    if why:
        return f"{name}: {why}. Attach to the tower inside it: attach({inside[0]}, restore=True)"
    return (
        f"{name}: only its vision tower can be reduced. Attach to the tower inside it, {inside[0]}, and "
        "use what that returns"
    )
