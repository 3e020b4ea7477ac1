"""The zoo: one function per method, each only a choice of parts and numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo.hookspecs import hookimpl

from .cdpruner import cdpruner as cdpruner
from .controls import downsample as downsample
from .controls import pool as pool
from .controls import random as random
from .controls import uniform as uniform
from .dart import dart as dart
from .divprune import divprune as divprune
from .evoprune import evoprune as evoprune
from .fastervlm import fastervlm as fastervlm
from .fastv import fastv as fastv
from .tome import tome as tome
from .visionzip import visionzip as visionzip


@hookimpl
def tokenzoo_recipes() -> Mapping[str, Callable[..., Any]]:
    """The built-in recipes."""
    return {
        "evoprune": evoprune,
        "tome": tome,
        "visionzip": visionzip,
        "fastervlm": fastervlm,
        "divprune": divprune,
        "cdpruner": cdpruner,
        "fastv": fastv,
        "dart": dart,
        "random": random,
        "uniform": uniform,
        "pool": pool,
        "downsample": downsample,
    }
