"""Mergers: the arithmetic of a plan."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo.hookspecs import hookimpl

from .fused import Fused as Fused
from .keep import Keep as Keep
from .mean import Mean as Mean
from .neighbour_sum import NeighbourSum as NeighbourSum
from .target_plus_mean import TargetPlusMean as TargetPlusMean
from .weighted_mean import WeightedMean as WeightedMean


@hookimpl
def tokenzoo_mergers() -> Mapping[str, Callable[..., Any]]:
    """The built-in mergers."""
    return {
        "weighted_mean": WeightedMean,
        "mean": Mean,
        "keep": Keep,
        "target_plus_mean": TargetPlusMean,
        "fused": Fused,
        "neighbour_sum": NeighbourSum,
    }
