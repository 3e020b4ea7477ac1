"""The stages of a model at which tokens can be reduced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenzoo._core.options import check_fields
from tokenzoo.errors import BadArgumentError


@dataclass(frozen=True)
class Stage:
    """A position in the pipeline: image, embedded, frames, block, features, projected or llm.

    `Stage.BLOCK` is all blocks of the tower, of which the schedule chooses; `Stage.LLM(16)` is one layer.
    `Stage.FRAMES(3)` is before block 3 of the tower: there a video gets fewer frames, and each "token" of
    the step is a whole frame.
    """

    name: str
    layer: int | None = None

    NAMES: ClassVar[tuple[str, ...]] = (
        *("image", "embedded", "frames", "block", "features", "projected", "llm"),
    )
    IMAGE: ClassVar[Stage]
    EMBEDDED: ClassVar[Stage]
    FRAMES: ClassVar[Stage]
    BLOCK: ClassVar[Stage]
    FEATURES: ClassVar[Stage]
    PROJECTED: ClassVar[Stage]
    LLM: ClassVar[Stage]

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name not in self.NAMES:
            raise BadArgumentError(
                f"no stage {self.name!r}; the stages are {', '.join(self.NAMES)}"
            )
        if self.layer is None:
            return
        if self.name not in ("frames", "block", "llm"):
            raise BadArgumentError(
                f"stage {self.name!r} has no layers; only 'frames', 'block' and 'llm' have"
            )

    def __call__(self, layer: int) -> Stage:
        """Return this stage at one layer: `Stage.LLM(16)`."""
        return replace(self, layer=layer)

    def __repr__(self) -> str:
        return f"Stage.{self.name.upper()}" + ("" if self.layer is None else f"({self.layer})")

    @property
    def order(self) -> tuple[int, int]:
        """Position in the pipeline."""
        return self.NAMES.index(self.name), -1 if self.layer is None else self.layer


for _name in Stage.NAMES:
    setattr(Stage, _name.upper(), Stage(_name))
