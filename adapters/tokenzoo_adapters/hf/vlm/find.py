"""Finds the adapter of a vision-language model: its spec, its tower, and where it can be reduced."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from tokenzoo.adapter import Adapter
from tokenzoo.errors import UnsupportedModelError
from tokenzoo_adapters.hf.decoder.layers import check_decoder
from tokenzoo_adapters.hf.towers import HFTower, find_tower
from tokenzoo_adapters.hf.vlm.adapter import VisionLanguageAdapter
from tokenzoo_adapters.hf.vlm.packed_tower import HFPackedTower, find_packed_tower
from tokenzoo_adapters.hf.vlm.spec import VisionLanguageSpec
from tokenzoo_adapters.hf.vlm.unfollowed_tower import UnfollowedTower


def find_vision_language(
    model: Any, specs: tuple[VisionLanguageSpec, ...]
) -> VisionLanguageAdapter | None:
    """The adapter of a vision-language model, if it is of a family with a spec.

    Args:
        model: with or without its language modelling head.
        specs: of the families that are known.

    Raises:
        UnsupportedModelError: it is, and cannot be followed.
    """
    for spec in specs:
        module = sys.modules.get(f"transformers.models.{spec.folder}.modeling_{spec.folder}")
        if module is None:
            continue
        if isinstance(model, getattr(module, spec.bare)):
            return _adapter(spec, model, model)
        if isinstance(model, getattr(module, spec.whole)):
            return _adapter(spec, model, model.model)
    return None


def _adapter(spec: VisionLanguageSpec, model: Any, base: Any) -> VisionLanguageAdapter:
    name = type(model).__name__
    tower = _tower(spec, model, base)
    carries = tower.streams if isinstance(tower, HFPackedTower) else ()
    for stream in spec.streams:
        if stream not in carries:
            raise UnsupportedModelError(
                f"{name} passes features of inner blocks of its vision tower ({stream.name}) to its "
                f"language model, and {type(tower).__name__} does not carry them along. What works on it: "
                "zoo.reduce(features), after the tower"
            )
    reason = spec.refuse(base, tower)
    if reason is not None:
        raise UnsupportedModelError(f"{name} {reason}")
    check_decoder(getattr(base, spec.language), name)
    inside = (
        tower.stages & {"block", "features"} if len(_read(spec, base.config)) < 2 else set[str]()
    )
    if inside and not tower.prefix and any(modality.stacked for modality in spec.modalities):
        inside |= {"frames"}
    return VisionLanguageAdapter(
        spec,
        model,
        base,
        tower,
        projector=f"{_at(model, base)}{spec.projector}",
        projected_prefix=spec.projected_prefix(base.config, tower.prefix),
        stages=frozenset({"projected", "llm", *inside}),
        dynamic_size=tower.dynamic_size and not (isinstance(tower, HFTower) and tower.names.asks),
        group=spec.group(base.config),
    )


def _tower(spec: VisionLanguageSpec, model: Any, base: Any) -> Adapter:
    """The adapter of the tower, down to the last block whose result is read."""
    name, tower = type(model).__name__, getattr(base, spec.tower)
    if spec.unfollowed is not None:
        return UnfollowedTower(base, spec.projector, spec.unfollowed)
    at = f"{_at(model, base)}{spec.tower}."
    merger = base.get_submodule(spec.projector)
    whole = find_tower(tower, at=at) or find_packed_tower(tower, at, merger)
    if whole is None:
        raise UnsupportedModelError(
            f"{name} has the vision tower {type(tower).__name__}, which is not supported. What works on "
            "it: zoo.reduce(features), after the tower"
        )
    if not isinstance(whole, HFTower):
        return whole
    read, blocks = _read(spec, base.config), len(whole.blocks())
    depth = max((layer if layer >= 0 else blocks + 1 + layer for layer in read), default=blocks)
    if not 1 <= depth <= blocks:
        layers = getattr(base.config, spec.reads)
        raise UnsupportedModelError(
            f"{name} reads the hidden states {layers!r} of a vision tower of {blocks} blocks: there is no "
            "block before them that could be reduced"
        )
    return replace(whole, outer=base, depth=depth)


def _read(spec: VisionLanguageSpec, config: Any) -> tuple[int, ...]:
    """Indices of the hidden states of the tower that are read; (): the last one, after its final norm."""
    layers = getattr(config, spec.reads) if spec.reads else ()
    return (layers,) if isinstance(layers, int) else tuple(layers)


def _at(model: Any, base: Any) -> str:
    """The path of the bare model in what was attached to, with a dot."""
    return "" if base is model else "model."
