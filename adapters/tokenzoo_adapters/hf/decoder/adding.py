"""Language models that add features to their visual tokens after the first layers (deepstack).

Between two layers such a model makes new tokens of those that a layer returned: by its mask of the whole
prompt, and without the state that rides on them. Here the features are added to the tokens that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor

from tokenzoo.hooks import Undo
from tokenzoo.token_map import take
from tokenzoo_adapters.common.patching import put, remove
from tokenzoo_adapters.hf.decoder.language_model import ADDING, LanguageModel
from tokenzoo_adapters.hf.decoder.state import get_state, set_state


def follow_added(language: LanguageModel) -> list[Undo]:
    """Have a language model add to the tokens that are left; returns what undoes it."""
    name = ADDING.get(language.kind)
    if name is None:
        return []
    module = language.module
    original = getattr(cast("Any", type(module)), name)
    put(module, {name: partial(_added, module, original)})
    return [partial(remove, module, (name,))]


def _added(
    module: Any, original: Callable[..., Tensor], x: Tensor, visual: Tensor, features: Tensor
) -> Tensor:
    """The model's own addition, of tokens from which some are gone.

    Args:
        module: the language model.
        original: its method.
        x: what a layer returned `[b, m, c]`.
        visual: which tokens of the prompt get features `[b, n]`.
        features: `[v, c]` of these, row by row.
    """
    state = get_state(x)
    if state is None or state.index is None or state.full is None:
        out = original(module, x, visual, features)
    else:
        # A filler token is a dropped one, and nothing attends to it: it may get its features, too.
        whole = original(module, x.new_zeros(state.full.shape), visual, features)
        out = x + take(whole, state.index.to(x.device))
    return out if state is None else set_state(out, state)
