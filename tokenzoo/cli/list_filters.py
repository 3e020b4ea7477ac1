"""Filters of recipes: by stage, by evidence that they do not need, by model. Nothing is run."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from tokenzoo import plugins
from tokenzoo.adapter import Adapter
from tokenzoo.cli.options import split
from tokenzoo.errors import (
    AttachError,
    MissingDependencyError,
    MissingEvidenceError,
    UnknownNameError,
)
from tokenzoo.evidence import NAMES
from tokenzoo.hooks.attach import check_fit, find_adapter
from tokenzoo.recipe import Recipe, Stage
from tokenzoo.tools import model_loading

_ATTENTION = "_attention"


@dataclass(frozen=True)
class Wanted:
    """Conditions on a recipe.

    Attributes:
        stage: where one of its steps works; "": anywhere.
        without: evidence that it must not need, of whatever layer.
        family: the class of the model that it must fit.
        adapter: of that model; None: any.
    """

    stage: str = ""
    without: frozenset[str] = frozenset()
    family: str = ""
    adapter: Adapter | None = None

    @property
    def asks(self) -> bool:
        """Whether there is any condition."""
        return bool(self.stage or self.without or self.adapter)

    def fit(self, recipe: Recipe) -> bool:
        """Whether a recipe meets all conditions."""
        if self.stage and all(step.stage.name != self.stage for step in recipe.steps):
            return False
        # Of "keys@text", keys are needed, and there must be a text.
        needed = {name for need in recipe.needs for name in need.split("@")}
        if not self.without.isdisjoint(needed):
            return False
        if self.adapter is None:
            return True
        try:
            check_fit(recipe, self.adapter, self.family)
        except (AttachError, MissingEvidenceError):
            return False
        return True


def wanted(stage: str | None, without: Iterable[str], model: str | None) -> Wanted:
    """Read the options of `tokenzoo list`.

    Args:
        stage: a stage's name.
        without: names of evidence, "cls" being short for "cls_attention", and so on; or comma lists.
        model: a name as `tokenzoo doctor` takes it, or a type of transformers without its prefix. The model
            is made without weights, and its adapter decides.

    Raises:
        UnknownNameError: no such stage, evidence or model; names the nearest.
        UnsupportedModelError: no recipe fits this model; says why.
        MissingDependencyError: the library that makes the model is not installed.
    """
    if stage is not None and stage not in Stage.NAMES:
        raise UnknownNameError(plugins.unknown("stage", stage, list(Stage.NAMES)))
    given = list(without)
    names = split(given, "--needs-no") if given else ()
    if model is None:
        return Wanted(stage or "", frozenset(map(_evidence, names)))
    family, adapter = _adapter(model)
    return Wanted(stage or "", frozenset(map(_evidence, names)), family, adapter)


def _evidence(name: str) -> str:
    for known in (name, name + _ATTENTION):
        if known in NAMES:
            return known
    # "text_attention" has no short form: "text" is another evidence.
    shorter = {known: known.removesuffix(_ATTENTION) for known in NAMES}
    known = [full if short in NAMES else short for full, short in shorter.items()]
    raise UnknownNameError(plugins.unknown("evidence", name, known))


def _adapter(name: str) -> tuple[str, Adapter]:
    """Return the class of a model, and its adapter."""
    types = _types()
    full = f"transformers:{name}" if name in types else name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # libraries warn of weights that are not loaded
        try:
            model = model_loading.create(full, device="meta").model
        except (RuntimeError, NotImplementedError):  # its constructor computes values
            model = model_loading.create(full, depth=1).model
        except UnknownNameError as error:
            near = difflib.get_close_matches(name, types, n=3)
            hint = f". Types of transformers near it: {', '.join(near)}" if near else ""
            raise UnknownNameError(f"{error}{hint}") from error
        finally:
            logging.disable(logging.NOTSET)
    return type(model).__name__, find_adapter(model)


def _types() -> list[str]:
    """The types of models of transformers, if that is installed."""
    try:
        return model_loading.LIBRARIES["transformers"].names()
    except MissingDependencyError:
        return []
