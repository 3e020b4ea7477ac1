"""What is attached to what, in a few lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenzoo.errors import BudgetError
from tokenzoo.hooks.passes import LastPass

if TYPE_CHECKING:
    from tokenzoo.hooks.handle import Attached


def summary(attached: Attached, last: LastPass, tokens: int | None = None) -> str:
    """Lines of text about an attached recipe.

    Args:
        attached: the recipe on its model.
        last: its last pass in this thread.
        tokens: patch tokens of an image; None: the model's own size.
    """
    plan, needs, image = None, attached.recipe.needs, "any size: summary(tokens=196)"
    if tokens is not None or attached.adapter.tokens() is not None:
        try:
            plan = attached.plan(tokens)
        except BudgetError as error:  # of the configured size, which is only one of several
            if tokens is not None or not attached.adapter.dynamic_size:
                raise
            image = f"any size: summary(tokens=196). Of the configured size, {error}"
    options = attached.options
    state = "" if attached.installed else " (detached)"
    chosen = {"when": attached.when, "trace": options.trace, "restore": options.restore}
    chosen |= {"debug": options.debug, "on_reduce": options.on_reduce}
    standard = {**dict.fromkeys(chosen, False), "when": "always", "on_reduce": None}
    rows = [
        ("model", f"{type(attached.model).__name__}, by {type(attached.adapter).__name__}{state}"),
        *(("step", repr(step)) for step in attached.recipe.steps),
        (
            "keep",
            str(attached.recipe.keep if attached.recipe.flops is None else plan and plan.features),
        ),
        ("flops", None if attached.recipe.flops is None else str(attached.recipe.flops)),
        ("attention", "proportional" if attached.recipe.proportional_attention else None),
        ("needs", ", ".join(sorted(needs)) or None),
        *((name, repr(value)) for name, value in chosen.items() if value != standard[name]),
    ]
    lines = [f"{name:<10}  {value}" for name, value in rows if value is not None]
    lines.append(f"image       {image}" if plan is None else str(plan))
    if last.state is not None:
        for one in attached.passes:
            lines.append(f"last pass   {', '.join(map(str, one.counts))}")
    if last.prompts is not None:
        lines.append(f"last prompts  {', '.join(map(str, last.prompts))} visual tokens left")
    return "\n".join(lines)
