"""What an adapter can ask about the recipe that was attached to its model."""

from __future__ import annotations

from typing import Any, Protocol

from tokenzoo.budget import TokenBudget


class Attachment(Protocol):
    """What an adapter can ask about the recipe that was attached (`tokenzoo.hooks.handle.Attached`)."""

    @property
    def recipe(self) -> Any:
        """The `Recipe`."""
        ...

    @property
    def active(self) -> bool:
        """Whether a pass would reduce."""
        ...

    @property
    def restores(self) -> bool:
        """Whether all tokens are there again after each block (`restore=True`)."""
        ...

    @property
    def options(self) -> Any:
        """The `Options` of `attach` (`tokenzoo.hooks.reduction`)."""
        ...

    def plan(self, tokens: int | None = None) -> TokenBudget:
        """The tokens at every point, for an image of so many."""
        ...

    def note_prompts(self, counts: tuple[int, ...]) -> None:
        """Receive how many visual tokens of each prompt are left in the language model."""
        ...
