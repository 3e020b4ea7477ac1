"""Descriptions of recipes and parts: summary, options, needs, and what is conserved."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tokenzoo import plugins
from tokenzoo._core.validation import check_kind
from tokenzoo.affinity import Affinity, Elementwise
from tokenzoo.errors import UnknownNameError
from tokenzoo.parts import PairScorer, walk
from tokenzoo.recipe import Recipe, Step


def describe(name: str) -> str:
    """Describe a recipe or part by its name: summary, options with defaults, parts, needs, promises.

    Raises:
        BadArgumentError: the name is not a str.
        UnknownNameError: no recipe or part has this name; names the nearest.
    """
    check_kind("name", name, str)
    kinds: list[plugins.Kind] = [k for k in plugins.KINDS if name in plugins.collect(k)]
    if not kinds:
        known = sorted({n for kind in plugins.KINDS for n in plugins.collect(kind)})
        raise UnknownNameError(plugins.unknown("recipe or part", name, known))
    # "mean" is a merger and a schedule, "random" a scorer and a recipe: both are described.
    return "\n".join(_one(kind, name) for kind in reversed(kinds))


def _one(kind: plugins.Kind, name: str) -> str:
    factory = plugins.find(kind, name)
    lines = [f"{name} ({kind[:-1]})", "", inspect.cleandoc(factory.__doc__ or "(no docstring)"), ""]
    options = _options(factory)
    if options:
        lines += ["Options and defaults:", *options, ""]
    if kind == "recipes":
        required = required_options(factory)
        lines += (
            [f"Its parts depend on {', '.join(required)}."]
            if required
            else composition(plugins.make_recipe(name))
        )
    return "\n".join(lines).rstrip() + "\n"


def _options(factory: Callable[..., Any]) -> list[str]:
    found: list[str] = []
    for option in inspect.signature(factory).parameters.values():
        default = "(required)" if option.default is option.empty else repr(option.default)
        found.append(f"  {option.name} = {default}")
    return found


def required_options(factory: Callable[..., Any]) -> list[str]:
    """Return the required options of a factory."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, option in inspect.signature(factory).parameters.items()
        if option.default is option.empty and option.kind not in variadic
    ]


def composition(recipe: Recipe) -> list[str]:
    """Return lines about the steps of a recipe: parts, needs, reach, conservation, scoring."""
    lines: list[str] = []
    for step in recipe.steps:
        lines += [
            f"At {step.stage!r}:",
            f"  schedule  {step.schedule!r}",
            f"  matcher   {step.matcher!r}",
            f"  merger    {step.merger!r}",
            *_restored(step),
            f"  needs     {', '.join(sorted(step.needs)) or 'nothing but the features'}",
            f"  one site  {_reach(step)}",
            f"  conserves {', '.join(sorted(step.merger.conserves)) or 'nothing'} (of what is not dropped)",
            f"  scoring   {_scoring(step)}",
        ]
    if recipe.proportional_attention:
        lines.append(
            "Proportional attention: from the first merge on, log mass is added to the logits."
        )
    return lines


def _restored(step: Step) -> list[str]:
    """Return a line about where removed tokens attend and come back; none if they do neither."""
    said = [] if step.restorer is None else [f"{step.restorer!r}, after the last block"]
    if step.attended != 1:
        said.append(f"removed tokens take part in the attention of {step.attended} blocks")
    return [f"  restorer  {'; '.join(said)}"] if said else []


def _reach(step: Step) -> str:
    return f"100 tokens can become {step.matcher.min_tokens(100)} at one site"


def _scoring(step: Step) -> str:
    pairs = [part for part in walk(step.matcher) if isinstance(part, PairScorer)]
    if not pairs:
        return "tokens only, no pairs"
    curves = (getattr(part, "curve", None) for part in pairs)
    slow = any(curve == "sigmoid" or isinstance(curve, Elementwise) for curve in curves)
    return (
        "pairs, materialised: this curve with weights has no folded form"
        if slow
        else "pairs, by one matrix product (" + Affinity.__name__ + ".folded)"
    )
