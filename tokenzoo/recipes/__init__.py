"""The zoo: one function per method, each only a choice of parts and numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo.hookspecs import hookimpl

from .ats import ats as ats
from .cdpruner import cdpruner as cdpruner
from .controls import downsample as downsample
from .controls import pool as pool
from .controls import random as random
from .controls import uniform as uniform
from .dart import dart as dart
from .divprune import divprune as divprune
from .dpcknn import dpcknn as dpcknn
from .evit import evit as evit
from .evoprune import evoprune as evoprune
from .fastervlm import fastervlm as fastervlm
from .fastv import fastv as fastv
from .fopru import fopru as fopru
from .gprune import gprune as gprune
from .kmedoids import kmedoids as kmedoids
from .pitome import pitome as pitome
from .prumerge import prumerge as prumerge
from .pyramiddrop import pyramiddrop as pyramiddrop
from .sparsevlm import sparsevlm as sparsevlm
from .tome import tome as tome
from .topk import topk as topk
from .trim import trim as trim
from .visionzip import visionzip as visionzip
from .vispruner import vispruner as vispruner
from .vscan import vscan as vscan


@hookimpl
def tokenzoo_recipes() -> Mapping[str, Callable[..., Any]]:
    """The built-in recipes."""
    return {
        "evoprune": evoprune,
        "tome": tome,
        "topk": topk,
        "evit": evit,
        "pitome": pitome,
        "ats": ats,
        "dpcknn": dpcknn,
        "kmedoids": kmedoids,
        "visionzip": visionzip,
        "vispruner": vispruner,
        "prumerge": prumerge,
        "fopru": fopru,
        "trim": trim,
        "fastervlm": fastervlm,
        "divprune": divprune,
        "cdpruner": cdpruner,
        "gprune": gprune,
        "vscan": vscan,
        "fastv": fastv,
        "dart": dart,
        "pyramiddrop": pyramiddrop,
        "sparsevlm": sparsevlm,
        "random": random,
        "uniform": uniform,
        "pool": pool,
        "downsample": downsample,
    }
