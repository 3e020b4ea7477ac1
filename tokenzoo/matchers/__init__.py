"""Matchers: who stays, and who joins whom."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo.hookspecs import hookimpl

from .assigners import Drop as Drop
from .assigners import Nearest as Nearest
from .bipartite import Bipartite as Bipartite
from .far_from_pivots import FarFromPivots as FarFromPivots
from .greedy_dpp import GreedyDPP as GreedyDPP
from .grid import GridCentres as GridCentres
from .grid import SameCell as SameCell
from .max_min import MaxMin as MaxMin
from .protect import Protect as Protect
from .select_assign import SelectAssign as SelectAssign
from .split import Alternate as Alternate
from .split import Every as Every
from .split import Parity as Parity
from .split import Split as Split
from .strided import Strided as Strided
from .then import REST as REST
from .then import Then as Then
from .top_k import TopK as TopK


@hookimpl
def tokenzoo_matchers() -> Mapping[str, Callable[..., Any]]:
    """The built-in matchers, their selectors, assigners, splits and protections."""
    return {
        "bipartite": Bipartite,
        "alternate": Alternate,
        "parity": Parity,
        "every": Every,
        "protect": Protect,
        "select_assign": SelectAssign,
        "top_k": TopK,
        "strided": Strided,
        "then": Then,
        "max_min": MaxMin,
        "greedy_dpp": GreedyDPP,
        "far_from_pivots": FarFromPivots,
        "grid_centres": GridCentres,
        "drop": Drop,
        "nearest": Nearest,
        "same_cell": SameCell,
    }
