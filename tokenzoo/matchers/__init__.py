"""Matchers: which tokens stay, and which tokens the others join."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo.hookspecs import hookimpl
from tokenzoo.temporal import (
    DensityRuns,
    FrameWindows,
    SceneCuts,
    StaticWindows,
    StreamingCuts,
)

from .above import Above as Above
from .among import Among as Among
from .among import JoinFirst as JoinFirst
from .anchored import Anchored as Anchored
from .assigners import Drop as Drop
from .assigners import Nearest as Nearest
from .bipartite import Bipartite as Bipartite
from .by_depth import ByDepth as ByDepth
from .distinct_per_group import DistinctPerGroup as DistinctPerGroup
from .elbow import Elbow as Elbow
from .ends_and_middles import EndsAndMiddles as EndsAndMiddles
from .far_from_pivots import FarFromPivots as FarFromPivots
from .fuse import Fuse as Fuse
from .greedy_dpp import GreedyDPP as GreedyDPP
from .grid import GridCentres as GridCentres
from .grid import SameCell as SameCell
from .into_frames import IntoFrames as IntoFrames
from .lattice import Lattice as Lattice
from .marginal_relevance import MarginalRelevance as MarginalRelevance
from .max_coverage import MaxCoverage as MaxCoverage
from .max_min import MaxMin as MaxMin
from .medoids import Medoids as Medoids
from .merge_frames import MergeFrames as MergeFrames
from .merge_windows import MergeWindows as MergeWindows
from .neighbour_pairs import NeighbourPairs as NeighbourPairs
from .outliers import Outliers as Outliers
from .patch_queries import PatchQueries as PatchQueries
from .per_frame import PerFrame as PerFrame
from .per_window import PerWindow as PerWindow
from .per_window import WholeRows as WholeRows
from .protect import Protect as Protect
from .run_quotas import RunQuotas as RunQuotas
from .salient_anchors import SalientAnchors as SalientAnchors
from .sampled import Sampled as Sampled
from .select_assign import SelectAssign as SelectAssign
from .slimming import Slimming as Slimming
from .split import Alternate as Alternate
from .split import Every as Every
from .split import Halves as Halves
from .split import Parity as Parity
from .split import Split as Split
from .static_dynamic import StaticDynamic as StaticDynamic
from .strided import Strided as Strided
from .then import REST as REST
from .then import Then as Then
from .thin import Thin as Thin
from .top_k import TopK as TopK
from .transport_centres import TransportCentres as TransportCentres
from .tree_merge import TreeMerge as TreeMerge
from .whole_frames import WholeFrames as WholeFrames


@hookimpl
def tokenzoo_matchers() -> Mapping[str, Callable[..., Any]]:
    """Return the built-in matchers, selectors, assigners, splits, protections and segmenters."""
    return {
        "bipartite": Bipartite,
        "by_depth": ByDepth,
        "alternate": Alternate,
        "halves": Halves,
        "parity": Parity,
        "every": Every,
        "protect": Protect,
        "select_assign": SelectAssign,
        "patch_queries": PatchQueries,
        "transport_centres": TransportCentres,
        "slimming": Slimming,
        "static_dynamic": StaticDynamic,
        "salient_anchors": SalientAnchors,
        "tree_merge": TreeMerge,
        "merge_frames": MergeFrames,
        "into_frames": IntoFrames,
        "per_frame": PerFrame,
        "whole_frames": WholeFrames,
        "above": Above,
        "frame_windows": FrameWindows,
        "scene_cuts": SceneCuts,
        "static_windows": StaticWindows,
        "density_runs": DensityRuns,
        "streaming_cuts": StreamingCuts,
        "merge_windows": MergeWindows,
        "neighbour_pairs": NeighbourPairs,
        "ends_and_middles": EndsAndMiddles,
        "top_k": TopK,
        "strided": Strided,
        "lattice": Lattice,
        "outliers": Outliers,
        "elbow": Elbow,
        "sampled": Sampled,
        "medoids": Medoids,
        "then": Then,
        "max_min": MaxMin,
        "max_coverage": MaxCoverage,
        "marginal_relevance": MarginalRelevance,
        "greedy_dpp": GreedyDPP,
        "far_from_pivots": FarFromPivots,
        "thin": Thin,
        "among": Among,
        "grid_centres": GridCentres,
        "per_window": PerWindow,
        "run_quotas": RunQuotas,
        "anchored": Anchored,
        "distinct_per_group": DistinctPerGroup,
        "whole_rows": WholeRows,
        "drop": Drop,
        "fuse": Fuse,
        "nearest": Nearest,
        "join_first": JoinFirst,
        "same_cell": SameCell,
    }
