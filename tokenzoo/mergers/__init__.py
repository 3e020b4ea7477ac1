"""Mergers: the arithmetic of a token map; and restorers, which bring removed tokens back."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo._core.deprecation import renamed
from tokenzoo.hookspecs import hookimpl

from .anchor_blend import AnchorBlend as AnchorBlend
from .centre_blend import CentreBlend as CentreBlend
from .copy_back import CopyBack as CopyBack
from .fused import Fused as Fused
from .identity import Identity as Identity
from .mean import Mean as Mean
from .neighbour_blend import NeighbourBlend as NeighbourBlend
from .neighbour_sum import NeighbourSum as NeighbourSum
from .neighbour_update import NeighbourUpdate as NeighbourUpdate
from .running_mean import RunningMean as RunningMean
from .soft_sum import SoftSum as SoftSum
from .straight_through import StraightThrough as StraightThrough
from .target_plus_mean import TargetPlusMean as TargetPlusMean
from .weighted_mean import WeightedMean as WeightedMean


@hookimpl
def tokenzoo_mergers() -> Mapping[str, Callable[..., Any]]:
    """The built-in mergers and restorers."""
    return {
        "weighted_mean": WeightedMean,
        "mean": Mean,
        "identity": Identity,
        "target_plus_mean": TargetPlusMean,
        "fused": Fused,
        "neighbour_sum": NeighbourSum,
        "neighbour_blend": NeighbourBlend,
        "centre_blend": CentreBlend,
        "anchor_blend": AnchorBlend,
        "running_mean": RunningMean,
        "copy_back": CopyBack,
        "neighbour_update": NeighbourUpdate,
        "soft_sum": SoftSum,
        "straight_through": StraightThrough,
    }


__getattr__ = renamed(__name__, {"Keep": "Identity"})
