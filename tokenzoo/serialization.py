"""Recipes as JSON: names and numbers, never code.

A part is written as the kind and the name under which it is registered, and its options. Loading looks
the names up again, so a plugin's part can be loaded where the plugin is installed, and nowhere else.
The weights of parts that learn are in a second file (`tokenzoo.stored_weights`); a part that occurs
again, since its weights are shared, is written once and then named by its number.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from tokenzoo import plugins, stored_weights
from tokenzoo._core.deprecation import rename_options, warn_renamed
from tokenzoo._core.quoting import quote, shortened
from tokenzoo._core.validation import is_kind
from tokenzoo.errors import BadArgumentError, TokenzooError
from tokenzoo.learned import modules
from tokenzoo.parts import Discount, Discounted, Normalized, Part, Sum
from tokenzoo.recipe import Recipe, Stage, Step

FORMAT = 1

DEEPEST = 50
"""Maximal nesting of parts and lists in a file."""

LARGEST = 1_000_000
"""Maximal size of a file in bytes; a recipe has a few thousand."""

RENAMED = {
    ("mergers", "keep"): "identity",
    ("scorers", "nearness"): "negative_squared_distance",
}
"""Names of parts that have changed; a file with an old one is read, with a warning."""

# The keys of a file.
_BY_NAME = ("tokenzoo", "recipe", "options", "weights")
_BY_PARTS = ("tokenzoo", "steps", "keep", "flops", "proportional_attention", "weights")

# Operators on scorers make these; they are not registered, and are written by class name.
_COMBINED = {part.__name__: part for part in (Discount, Discounted, Normalized, Sum)}


def save(recipe: Recipe, name: str | None, options: Mapping[str, Any], path: str | Path) -> None:
    """Write a recipe: by its name and options, or, if made by hand, part by part.

    The weights of parts that learn go into a file of the same name that ends in .safetensors.

    Raises:
        BadArgumentError: a part is not registered and so has no name, or a file cannot be written.
    """
    content: dict[str, Any] = {"tokenzoo": FORMAT}
    encode = _Encoder()
    try:
        if name is not None:
            content |= {"recipe": name, "options": {k: encode(v) for k, v in options.items()}}
        else:
            content |= {"steps": [encode(step) for step in recipe.steps]}
            content |= {"keep": recipe.keep, "flops": recipe.flops}
            content["proportional_attention"] = recipe.proportional_attention
        text = json.dumps(content, indent=2)
        if stored_weights.state_of(recipe):
            content["weights"] = stored_weights.write(recipe, _weights_path(Path(path)))
            text = json.dumps(content, indent=2)
        Path(path).write_text(text + "\n")
    except TokenzooError:
        raise
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise BadArgumentError(
            f"{quote(path, 200)} cannot be written: {error}. Name a file"
        ) from error


def read(path: str | Path) -> dict[str, Any]:
    """Read what `save` wrote: `{"recipe", "options"}`, or `{"steps": Recipe}`; "weights", if it has any.

    Raises:
        BadArgumentError: the file is not a saved recipe, or has a later format.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise _not_ours(path, f"it has more than {LARGEST} bytes")
        content = json.loads(text)
    except TokenzooError:
        raise
    except (ValueError, OSError, TypeError, RecursionError) as error:
        raise _not_ours(path, str(error)) from error
    if not isinstance(content, dict):
        raise _not_ours(path, "it is not a JSON object")
    found = cast("dict[str, Any]", content)
    version = found.get("tokenzoo")
    if type(version) is not int or version != FORMAT:
        raise BadArgumentError(
            f"{_named(path)} has format {quote(version)}; this version reads {FORMAT}: upgrade tokenzoo, "
            "or save the recipe again"
        )
    names = _BY_NAME if "recipe" in found else _BY_PARTS
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise _not_ours(path, f"{quote(unknown[0])} is not one of {', '.join(names)}")
    weights = {"weights": found["weights"]} if "weights" in found else {}
    decode = _Decoder()
    try:
        if "recipe" in found:
            options = {k: decode(v) for k, v in found["options"].items()}
            if "recipe" in options:
                raise _not_ours(path, "'recipe' is not an option")
            return {"recipe": found["recipe"], "options": options, **weights}
        steps = [decode(step) for step in found["steps"]]
        options = {name: found[name] for name in ("keep", "proportional_attention")}
        return {"steps": Recipe(*steps, flops=found.get("flops"), **options), **weights}
    except TokenzooError:
        raise
    except RecursionError as error:
        raise _not_ours(path, "it is nested too deep") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _not_ours(path, quote(error, 200)) from error


def _not_ours(path: str | Path, why: str) -> BadArgumentError:
    return BadArgumentError(
        f"{_named(path)} is not a saved recipe: {why}. Write one with zoo.save(path)"
    )


def _named(path: str | Path) -> str:
    return shortened(str(path), 200) if is_kind(path, str | Path) else quote(path)


def name_of(part: Part) -> tuple[str, str] | None:
    """Return the kind and name under which the class of a part is registered, or None."""
    for kind in plugins.KINDS:
        for name, factory in plugins.collect(kind).items():
            if factory is type(part):
                return kind, name
    return None


def _weights_path(path: Path) -> Path:
    """Return the file of the weights of a recipe that is saved at `path`."""
    other = path.with_suffix(".safetensors")
    if other == path:
        raise BadArgumentError(
            f"{quote(path, 200)} is for the weights; name the recipe's own file .json"
        )
    return other


class _Encoder:
    """Makes JSON of parts; a part with modules is written once, then named by its number."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Stage):
            return {"stage": value.name, "layer": value.layer}
        if isinstance(value, Step):
            return {"step": self._fields(value)}
        if isinstance(value, list | tuple):
            return [self(item) for item in cast("tuple[Any, ...]", value)]
        if isinstance(value, Part):
            return self._part(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise BadArgumentError(
            f"{quote(value)} cannot be saved: only names, numbers and registered parts are"
        )

    def _part(self, part: Part) -> dict[str, Any]:
        combined = type(part).__name__ if type(part) in _COMBINED.values() else None
        found = ("combined", combined) if combined else name_of(part)
        if found is None or not is_dataclass(part):
            raise BadArgumentError(
                f"{quote(part)} is not registered under a name, and code is never saved: register it "
                "by a plugin (docs/parts.md), or keep the recipe in Python"
            )
        shared: dict[str, int] = {}
        if modules(part):
            if id(part) in self.numbers:
                return {"again": self.numbers[id(part)]}
            shared["number"] = self.numbers[id(part)] = len(self.numbers)
        return {"part": list(found), "options": self._fields(part), **shared}

    def _fields(self, value: Any) -> dict[str, Any]:
        return {f.name: self(getattr(value, f.name)) for f in fields(value) if f.init}


class _Decoder:
    """Makes parts of JSON."""

    def __init__(self) -> None:
        self.numbered: dict[Any, Any] = {}

    def __call__(self, value: Any, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise ValueError("it is nested too deep")
        if isinstance(value, list):
            return tuple(self(item, depth + 1) for item in cast("list[Any]", value))
        if not isinstance(value, dict):
            return value
        entry = cast("dict[str, Any]", value)
        if "stage" in entry:
            return Stage(entry["stage"], entry["layer"])
        if "step" in entry:
            return Step(**{k: self(v, depth + 1) for k, v in entry["step"].items()})
        if "again" in entry:
            return self.numbered[entry["again"]]
        kind, name = entry["part"]
        part: Any = _made(kind, name, {k: self(v, depth + 1) for k, v in entry["options"].items()})
        if "number" in entry:
            self.numbered[entry["number"]] = part
        return part


def _made(kind: str, name: str, options: dict[str, Any]) -> Any:
    """Make a part of its kind, name and options."""
    if (kind, name) in RENAMED:
        new = RENAMED[kind, name]
        warn_renamed(f"the part {name!r}", repr(new), "save the recipe again")
        name = new
    known = _COMBINED if kind == "combined" else plugins.KINDS
    if (name if kind == "combined" else kind) not in known:
        raise ValueError(f"no part {quote(kind)}, {quote(name)}; there are {', '.join(known)}")
    factory = _COMBINED[name] if kind == "combined" else plugins.find(cast("Any", kind), name)
    parameters = inspect.signature(factory).parameters
    options = rename_options(name, options, parameters)
    starred = [p.name for p in parameters.values() if p.kind == p.VAR_POSITIONAL]
    positional = options.pop(starred[0]) if starred else ()
    return factory(*positional, **options)
