"""Generator of docs/recipes/: a page about each recipe, and a table of all.

The docstring of a recipe's function has a summary in one line, the idea in one or more paragraphs, and
the `SECTIONS`, as in tokenzoo/recipes/divprune.py. A remark in brackets that begins with one of `REMARKS`
states what the paper says about an option. A control has no original: its summary, formula and options
are enough.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenzoo import plugins
from tokenzoo.description import composition
from tokenzoo.errors import BadArgumentError
from tokenzoo.recipe import Recipe, Stage
from tokenzoo.recipes import controls

SECTIONS = ("Formula", "Args", "Departures", "Licence", "Reference")
REMARKS = ("paper", "authors' code", "open", "contradictory", "ours")

_HEADING = re.compile(r"^([A-Z]\w+):$", re.MULTILINE)
_OPTION = re.compile(r"^(\w+): (.*)", re.DOTALL)
_REMARK = re.compile(rf"\s*\(((?:{'|'.join(REMARKS)})\b[^()]*)\)")


@dataclass(frozen=True)
class ParsedDocstring:
    """The sections of a recipe's docstring.

    Attributes:
        summary: the first line.
        idea: the paragraphs after it.
        formula: the formula, with its layout.
        options: maps each option to its description and the remark about the paper.
        departures: departures from the original.
        licence: licence of the original.
        reference: the paper.
    """

    summary: str
    idea: str
    formula: str
    options: Mapping[str, tuple[str, str]]
    departures: str = ""
    licence: str = ""
    reference: str = ""


def parse_docstring(name: str) -> ParsedDocstring:
    """Parse the docstring of a recipe.

    Raises:
        UnknownNameError: no recipe has this name.
        BadArgumentError: the docstring lacks a section, an option or a paragraph; names it.
    """
    factory = plugins.find("recipes", name)
    doc = inspect.cleandoc(factory.__doc__ or "")
    start, *parts = _HEADING.split(doc)
    sections: dict[str, str] = {}
    outside: list[str] = []
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        inside, *after = re.split(r"\n(?=\S)", text, maxsplit=1)
        sections[title] = textwrap.dedent(inside).strip("\n")
        outside += after
    summary, _, idea = start.strip().partition("\n\n")
    options = _options(sections.get("Args", ""))
    known = inspect.signature(factory).parameters
    original = not _is_control(factory)
    wanted = {
        "its first line": summary,
        "a paragraph of the idea after the first line": idea or not original,
        **{f"{s}:": sections.get(s) for s in (SECTIONS if original else SECTIONS[:1])},
        **{f"{option} under Args:": option in options for option in known},
    }
    problems = [f"lacks {what}" for what, there in wanted.items() if not there]
    problems += [f"has {title}:, which is no section" for title in set(sections) - {*SECTIONS}]
    problems += [f"has {text.split(chr(10))[0]!r} outside of the sections" for text in outside]
    problems += [f"has {option}, which is no option" for option in set(options) - {*known}]
    if problems:
        raise BadArgumentError(
            f"the docstring of the recipe {name!r} ({factory.__module__}) {'; '.join(problems)}. Its "
            f"sections are {', '.join(SECTIONS)}; tokenzoo/recipes/divprune.py shows their form"
        )
    texts = {
        field: sections.get(field.capitalize(), "")
        for field in ("formula", "departures", "licence", "reference")
    }
    return ParsedDocstring(summary, idea, options=options, **texts)


def _options(text: str) -> dict[str, tuple[str, str]]:
    """Return the description and the remarks in brackets of each option."""
    found: dict[str, tuple[str, str]] = {}
    for item in re.split(r"\n(?=\S)", text):
        option = _OPTION.match(item)
        if option:
            said = " ".join(option[2].split())
            found[option[1]] = _REMARK.sub("", said).strip(), "; ".join(_REMARK.findall(said))
    return found


def _is_control(factory: Callable[..., Any]) -> bool:
    return factory.__module__ == controls.__name__


def page(
    name: str,
    *,
    models: Mapping[str, str] | None = None,
    cost: str = "",
    trained: str = "",
    made_by: str = "",
    **options: Any,
) -> str:
    """A page about a recipe, in Markdown.

    Args:
        name: name of a registered recipe, also of a plugin.
        models: maps each tried model to "runs" or the reason why not.
        cost: the measured cost of its selection.
        trained: what its learned parts were measured to keep after a training.
        made_by: the command that makes the page.
        options: required options of the recipe.

    Raises:
        UnknownNameError: no recipe has this name.
        BadArgumentError: see `parse_docstring`.
    """
    found, factory = parse_docstring(name), plugins.find("recipes", name)
    recipe = plugins.make_recipe(name, options)
    parts = [
        f"# `{name}`",
        f"Made from the code by `{made_by}`: change that, not this page." if made_by else "",
        found.summary,
        found.idea,
        f"```text\n{found.formula}\n```",
        _facts(recipe, found),
        "## Options",
        _options_table(factory, found),
        "## Parts",
        "```text\n" + "\n".join(composition(recipe)) + "\n```",
        *(["## Models", _models(models)] if models else []),
        *(["## What the selection costs", cost] if cost else []),
        *(["## What was learned", trained] if trained else []),
        *(["## Departures from the original", found.departures] if found.departures else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def index(names: Sequence[str], **recipes: Recipe) -> str:
    """A table of recipes, each linked to its page, in Markdown: in the order of their stages, controls
    last.

    Args:
        names: names of registered recipes.
        recipes: recipes with required options, built.

    Raises:
        UnknownNameError, BadArgumentError: as `page`.
    """
    lines = ["| recipe | stage | needs | what it does | reference |", "|---|---|---|---|---|"]
    factories = {name: plugins.find("recipes", name) for name in names}
    made = {name: recipes.get(name) or plugins.make_recipe(name) for name in names}

    def place(name: str) -> tuple[bool, int, str]:
        first = made[name].steps[0].stage.name
        return _is_control(factories[name]), Stage.NAMES.index(first), name

    for name in sorted(names, key=place):
        found, factory, recipe = parse_docstring(name), factories[name], made[name]
        reference = found.reference or ("control" if _is_control(factory) else "")
        cells = (f"[`{name}`]({name}.md)", stages(recipe), needs(recipe), found.summary, reference)
        lines.append(_row(*cells))
    return "\n".join(lines)


def stages(recipe: Recipe) -> str:
    """Return the stages of a recipe, in order, as text."""
    return ", ".join(dict.fromkeys(step.stage.name for step in recipe.steps))


def needs(recipe: Recipe) -> str:
    """Return the evidence that a recipe needs, as text."""
    return ", ".join(f"`{need}`" for need in sorted(recipe.needs)) or "nothing"


def _facts(recipe: Recipe, found: ParsedDocstring) -> str:
    facts = {
        "stage": ", ".join(f"{step.stage!r}".removeprefix("Stage.") for step in recipe.steps),
        "evidence needed": needs(recipe),
        "reference": found.reference,
        "licence of the original": found.licence,
    }
    rows = [_row(fact, said) for fact, said in facts.items() if said]
    return "\n".join(["| | |", "|---|---|", *rows])


def _options_table(factory: Callable[..., Any], found: ParsedDocstring) -> str:
    lines = ["| option | default | what it does | in the paper |", "|---|---|---|---|"]
    for name, option in inspect.signature(factory).parameters.items():
        default = "(required)" if option.default is option.empty else f"`{option.default!r}`"
        lines.append(_row(f"`{name}`", default, *found.options[name]))
    return "\n".join(lines)


def _models(models: Mapping[str, str]) -> str:
    lines = ["| model | |", "|---|---|"]
    return "\n".join([*lines, *(_row(model, verdict) for model, verdict in models.items())])


def _row(*cells: str) -> str:
    """Return a row of a table, with arXiv numbers as links."""
    texts = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    linked = [
        re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
        for text in texts
    ]
    return f"| {' | '.join(linked)} |"
