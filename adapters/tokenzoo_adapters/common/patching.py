"""Attributes of one model's own, in front of those of its class.

A library that pools, packs or generates in a method offers no module to hook. A `functools.partial` of a
function is set on the instance instead: it is copied and pickled with the model, and then is the copy's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def put(module: Any, values: Mapping[str, Any]) -> None:
    """Set attributes of an instance."""
    for name, value in values.items():
        setattr(module, name, value)


def remove(module: Any, names: Iterable[str]) -> None:
    """Delete attributes of an instance, so that those of its class are found again. Idempotent."""
    for name in names:
        module.__dict__.pop(name, None)
