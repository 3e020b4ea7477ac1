"""Recipes on models: the tap on the attention, the state of a pass, the splice, attach.

Adapters import these names from this package, and nothing from its files:

- state of a pass: `get_state`, `set_state`, `ReductionState`, `reduced_tokens`, `all_tokens`,
  `LOST` (the message if there is none);
- per thread: `PerThread`, `thread_local`;
- attention: `Tap`, `TAP_ATTR`, `unwatch`; log mass as one more channel of the keys: `fits`, `widened`;
- hooks: `hook_first`, `Undo`, `undo_all`, `refuse_symbols`, `refuse_outside`;
- reductions: `Event`, `Options`; the check at attach: `EverySecond`.
"""

from tokenzoo.hooks.graph_capture import refuse_symbols
from tokenzoo.hooks.hook_order import hook_first
from tokenzoo.hooks.key_bias import fits, widened
from tokenzoo.hooks.reduction import Event, Options
from tokenzoo.hooks.sharding import refuse_outside
from tokenzoo.hooks.state import (
    LOST,
    PerThread,
    ReductionState,
    all_tokens,
    get_state,
    reduced_tokens,
    set_state,
    thread_local,
)
from tokenzoo.hooks.tap import TAP_ATTR, Tap, unwatch
from tokenzoo.hooks.undo import Undo, undo_all
from tokenzoo.hooks.verify import EverySecond

__all__ = [
    "LOST",
    "TAP_ATTR",
    "Event",
    "EverySecond",
    "Options",
    "PerThread",
    "ReductionState",
    "Tap",
    "Undo",
    "all_tokens",
    "fits",
    "get_state",
    "hook_first",
    "reduced_tokens",
    "refuse_outside",
    "refuse_symbols",
    "set_state",
    "thread_local",
    "undo_all",
    "unwatch",
    "widened",
]
