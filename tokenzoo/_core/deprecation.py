"""Old public names, which work for one version and warn with the new name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any

from tokenzoo.errors import BadArgumentError

OPTIONS = {"by": "attention_source", "faithful": "match_reference"}
"""Options of recipes and parts that have another name now."""


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module with renamed attributes.

    Args:
        module: its `__name__`.
        names: maps each old name to the new one.
    """

    def find(name: str) -> Any:
        new = names.get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{new}", stacklevel=3)
        return getattr(sys.modules[module], new)

    return find


def warn_renamed(old: str, new: str, do: str = "", *, stacklevel: int = 2) -> None:
    """Warn that a name has changed.

    Args:
        old: what was used.
        new: its name now.
        do: what to do, if that is more than to write the new name.
        stacklevel: the frame that the warning points at; 2 is the caller's.
    """
    do = f": {do}" if do else ""
    warnings.warn(
        f"{old} is called {new} now; the old name goes with version 0.3{do}",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def rename_options(
    owner: str, options: Mapping[str, Any], known: Container[str], *, stacklevel: int = 2
) -> dict[str, Any]:
    """Return options under their new names, with a warning for each old one (`OPTIONS`).

    Args:
        owner: the recipe or part whose options they are.
        options: by name.
        known: the names that the owner has.
        stacklevel: the frame that the warning points at; 2 is the caller's.

    Raises:
        BadArgumentError: an option is given under both names.
    """
    renamed: dict[str, Any] = {}
    for name, value in options.items():
        new = OPTIONS.get(name, name)
        if name in known or new not in known:
            new = name
        if new != name:
            if new in options:
                raise BadArgumentError(
                    f"{owner} got both {name}= and {new}=, which are the same option: pass only {new}="
                )
            warn_renamed(f"the option {name!r} of {owner}", repr(new), stacklevel=stacklevel + 1)
        renamed[new] = value
    return renamed
