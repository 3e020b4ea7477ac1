"""The plugin manager, which finds parts, recipes and adapters; built-in ones come through it, too.

Nothing is loaded at import. The first look-up registers the built-in parts and every entry point of the
group `tokenzoo`; the environment variable TOKENZOO_PLUGINS, a comma-separated list of entry point names,
restricts the latter to those (our own adapters always load).
"""

from __future__ import annotations

import difflib
import importlib
import os
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

import pluggy

from tokenzoo import hookspecs
from tokenzoo._core.options import check_arguments
from tokenzoo._core.quoting import LONGEST, quote
from tokenzoo._core.validation import check_kind, is_kind
from tokenzoo.errors import BadArgumentError, PluginError, TokenzooError, UnknownNameError
from tokenzoo.hookspecs import PROJECT
from tokenzoo.recipe import Recipe

Kind = Literal["scorers", "matchers", "mergers", "schedules", "recipes"]
KINDS: tuple[Kind, ...] = ("scorers", "matchers", "mergers", "schedules", "recipes")
DISTRIBUTION = "tokenzoo"
LONGEST_PATTERN = 1000

_lock = threading.RLock()
_manager: pluggy.PluginManager | None = None
_distributions: dict[str, str] = {}


def manager() -> pluggy.PluginManager:
    """The plugin manager, loaded on the first call.

    Raises:
        PluginError: a plugin does not import, or has a hook that does not exist. Nothing stays half-loaded:
            the next call tries again.
    """
    global _manager
    with _lock:
        if _manager is None:
            fresh = pluggy.PluginManager(PROJECT)
            fresh.add_hookspecs(hookspecs)
            for kind in KINDS:
                _register(fresh, importlib.import_module(f"tokenzoo.{kind}"), f"tokenzoo.{kind}")
            for entry in _entries():
                _register(fresh, _load(entry), entry.name, _distribution(entry))
            _manager = fresh
        return _manager


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"


def _entries() -> list[EntryPoint]:
    found = sorted(entry_points(group=PROJECT), key=lambda entry: (entry.name, entry.value))
    wanted = os.environ.get("TOKENZOO_PLUGINS")
    if wanted is None:
        return found
    names = {name.strip() for name in wanted.split(",") if name.strip()}
    unknown = sorted(names - {entry.name for entry in found})
    if unknown:
        raise PluginError(
            f"TOKENZOO_PLUGINS names {', '.join(unknown)}; installed are "
            f"{', '.join(sorted({entry.name for entry in found})) or 'none'}"
        )
    return [entry for entry in found if entry.name in names or _distribution(entry) == DISTRIBUTION]


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(
            f"the plugin {entry.name!r} of the distribution {_distribution(entry)!r} ({entry.value}) does "
            f"not import: {type(error).__name__}: {error}. Fix or uninstall it, or leave it out with "
            "TOKENZOO_PLUGINS"
        ) from error


def _register(
    into: pluggy.PluginManager, plugin: Any, name: str, distribution: str = DISTRIBUTION
) -> None:
    who = f"the plugin {name!r} of the distribution {distribution!r}"
    if into.has_plugin(name) or into.is_registered(plugin):
        raise PluginError(
            f"{who} is registered already: each plugin and each name can be registered once"
        )
    try:
        into.register(plugin, name)
        into.check_pending()
    except (ValueError, pluggy.PluginValidationError) as error:
        if into.get_plugin(name) is plugin:
            into.unregister(plugin)
        hooks = ", ".join(hook for hook in vars(hookspecs) if hook.startswith("tokenzoo_"))
        raise PluginError(f"{who} cannot be registered: {error}. The hooks are {hooks}") from error
    if not into.get_hookcallers(plugin):
        into.unregister(plugin)
        raise PluginError(f"{who} implements no hook: mark its functions with @tokenzoo.hookimpl")
    _distributions[name] = distribution


@contextmanager
def registered(plugin: Any, name: str = "test") -> Generator[None]:
    """Register a plugin for the length of a `with` block: for tests of one that is not installed."""
    _register(manager(), plugin, name)
    try:
        for kind in KINDS:
            collect(kind)  # raises if a name is taken
        yield
    finally:
        manager().unregister(plugin)


def collect(kind: Kind) -> dict[str, Callable[..., Any]]:
    """Return all factories of a kind, by name.

    Raises:
        PluginError: two plugins take the same name, or one does not return a mapping of factories.
    """
    factories: dict[str, Callable[..., Any]] = {}
    owners: dict[str, str] = {}
    for implementation in getattr(manager().hook, f"tokenzoo_{kind}").get_hookimpls():
        who = _who(implementation.plugin_name)
        for name, factory in _call(implementation.function, f"tokenzoo_{kind}", who).items():
            if name in factories:
                raise PluginError(
                    f"{owners[name]} and {who} both provide {kind[:-1]} {name!r}: leave one of them out "
                    "with TOKENZOO_PLUGINS"
                )
            factories[name] = factory
            owners[name] = who
    return factories


def distribution_of(plugin: str) -> str:
    """Return the distribution of a registered plugin."""
    return _distributions.get(plugin, DISTRIBUTION)


def _who(plugin: str) -> str:
    return f"the plugin {plugin!r} of the distribution {distribution_of(plugin)!r}"


def _call(function: Callable[[], Any], hook: str, who: str) -> Mapping[str, Callable[..., Any]]:
    """Call a hook of a plugin, and check that it returns a mapping of names to factories."""
    try:
        found = function()
    except Exception as error:
        raise PluginError(f"{who} fails in {hook}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping):
        raise PluginError(
            f"{who} returns {found!r} from {hook}; it must be a mapping of names to "
            "factories: {'name': Class}"
        )
    mapping = cast("Mapping[str, Callable[..., Any]]", found)
    for name, factory in mapping.items():
        if not is_kind(name, str) or not callable(factory):
            raise PluginError(
                f"{who} returns {{{name!r}: {factory!r}}} from {hook}; a name is a str, a factory a class "
                "or function"
            )
    return mapping


def names(kind: Kind, pattern: str = "*") -> list[str]:
    """Return the names of a kind that match a shell pattern, sorted.

    Raises:
        BadArgumentError: the pattern is not a text, or a very long one.
    """
    if len(check_kind("pattern", pattern, str)) > LONGEST_PATTERN:
        raise BadArgumentError(
            f"pattern={quote(pattern)}; it must be a shell pattern of at most {LONGEST_PATTERN} characters"
        )
    return sorted(name for name in collect(kind) if fnmatch(name, pattern))


def find(kind: Kind, name: str) -> Callable[..., Any]:
    """The factory of this name.

    Raises:
        UnknownNameError: the name is unknown; names the nearest.
    """
    factories = collect(kind)
    if not is_kind(name, str) or name not in factories:
        raise UnknownNameError(unknown(kind[:-1], name, factories))
    return factories[name]


def make_recipe(name: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """Call the recipe function of this name.

    Raises:
        UnknownNameError: no recipe has this name; names the nearest.
        BadArgumentError: an option does not match its annotation, or cannot work.
        PluginError: the function of a plugin fails, or does not return a recipe.
    """
    factory, given = find("recipes", name), dict(options or {})
    # The recipe itself checks keep and flops, with better messages; parts check theirs first.
    checked = {option: value for option, value in given.items() if option not in ("keep", "flops")}
    try:
        made: object = factory(**given)
        check_arguments(name, factory, checked)
    except TokenzooError:
        raise
    except Exception as error:
        check_arguments(name, factory, checked)
        if getattr(factory, "__module__", "").partition(".")[0] == DISTRIBUTION:
            raise
        raise PluginError(
            f"the recipe {name!r} fails with {type(error).__name__}: {error}. Fix its function, which must "
            "return a Recipe, or raise a BadArgumentError about an invalid option"
        ) from error
    if not isinstance(made, Recipe):
        raise PluginError(
            f"the recipe {name!r} returns {quote(made)}; its function must return a Recipe"
        )
    return made


def unknown(what: str, name: object, known: Mapping[str, Any] | list[str]) -> str:
    """Return the message for an unknown name, with the nearest known ones."""
    near = difflib.get_close_matches(str(name)[:LONGEST], list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"no {what} {quote(name)}; {hint}there are {', '.join(sorted(known))}"
