"""Whether a recipe and a model go together, by what the adapter says; nothing is run."""

from __future__ import annotations

from tokenzoo.adapter import Adapter
from tokenzoo.errors import AttachError, MissingEvidenceError
from tokenzoo.evidence import ENTERED, PREVIOUS, layer_of
from tokenzoo.hooks.state import FROM_ATTENTION
from tokenzoo.learned import SoftMatcher
from tokenzoo.parts import Assigner, Selector, walk
from tokenzoo.recipe import Recipe, Stage, Step


def check_fit(recipe: Recipe, adapter: Adapter, name: str, *, restore: bool = False) -> None:
    """See that a recipe and a model go together, by what the adapter says; nothing is run.

    Args:
        recipe: to be attached.
        adapter: of the model, which may be on the meta device.
        name: of the model's class, for the messages.
        restore: see `Method.attach`.

    Raises:
        AttachError: the model has no such stage, or the recipe asks for what it cannot do.
        MissingEvidenceError: the recipe needs what the model cannot show.
    """
    if len(recipe.steps) > 1 and recipe.step_at(Stage.IMAGE) is not None:
        raise AttachError(
            "a step at stage 'image' must be the only step: later ones would be planned for the whole image"
        )
    for step in recipe.steps:
        if step.stage.name not in adapter.stages:
            raise AttachError(
                f"this recipe works at {step.stage!r}; {name} can be reduced at "
                f"{', '.join(sorted(adapter.stages))}{adapter.no_other_stage}. On the features "
                "themselves: zoo.reduce(x, ...)"
            )
        if step.stage.name == "frames" and not step.stage.layer:
            raise AttachError(
                f"{step.stage!r}: a step at the frames names the block before which it is, 1 or later: "
                "Stage.FRAMES(3)"
            )
        if step.stage.name == "block" and step.stage.layer is not None:
            raise AttachError(
                f"{step.stage!r}: a step at the blocks names no layer; its schedule chooses the blocks"
            )
        if step.prefix == "drop":
            raise AttachError(
                f"prefix='drop' at {step.stage!r}: a model reads its CLS and register tokens itself; leave "
                "prefix='keep' (a language model gets no CLS or register tokens either way)"
            )
    _check_frames(recipe, name)
    _check_restored(recipe, name)
    inside = not recipe.all_back and any(
        step.stage.name in ("block", "features") for step in recipe.steps
    )
    if adapter.all_tokens and inside and not restore:
        raise AttachError(
            f"{name} needs all tokens after its blocks: {adapter.all_tokens}. Attach with "
            "restore=True, which restores them after the last block; or write an Adapter "
            "whose install() counts masses"
        )
    if restore and adapter.projector:
        raise AttachError(
            f"restore=True: the projector of {name} reads the output of the tower's blocks and would "
            f"get all tokens again: use restore=False, or attach to a tower without a projector"
        )
    for step in recipe.steps:
        parts = walk(step.matcher)
        if any(isinstance(p, SoftMatcher) or (isinstance(p, Assigner) and p.extra) for p in parts):
            inside = adapter.positional and step.stage.name == "block"
            follows = inside or adapter.layout_class.ordered
            who = {f"the attention of {name}": follows, "restore=True": restore}
            who["its restorer"] = step.restorer is not None
            for asking in (asking for asking, asks in who.items() if asks):
                raise AttachError(
                    f"this recipe makes new tokens, which have no position in the image, and {asking} "
                    "needs positions: choose an assigner that joins tokens to kept ones"
                )
    for step in recipe.steps:
        _check_ragged(recipe, step, adapter, name)
        # The parts of a step at the image choose nothing: the adapter makes a smaller image.
        shown = adapter.provides_at(step.stage.name)
        if step.stage.name == "block":
            # A site knows which block it is, and what enters the blocks.
            shown |= {"depth", f"x@{ENTERED}", f"x@{PREVIOUS}"}
        missing = sorted(
            need
            for need in (step.needs if step.stage.name != "image" else ())
            if need not in shown and not _shown_by_another(need, step.stage.name, adapter)
        )
        if missing:
            hint = ""
            if "cls_attention" in missing and "received_attention" in shown:
                hint = ": without a CLS token, ReceivedAttention() in place of CLSAttention()"
            if "frames" in missing and step.stage.name == "projected":
                hint = ": if images of a prompt are the frames of a video, attach(..., frames=8) says so"
            if "text" in missing and "text" in adapter.provides_at("projected"):
                hint = ": text is there in the language model's space, at Stage.PROJECTED"
            raise MissingEvidenceError(
                f"this recipe needs {', '.join(missing)} at {step.stage!r}; {name} provides "
                f"{', '.join(sorted(shown))} at this stage. Choose a part that needs one of these{hint}"
            )


def _check_frames(recipe: Recipe, name: str) -> None:
    """Raise if frames are merged, and no later step makes of the rest what is planned for all frames.

    Raises:
        AttachError: the prompts have tokens of all frames.
    """
    projected = recipe.step_at(Stage.PROJECTED)
    if recipe.step_at(Stage.FRAMES) is not None and (
        projected is None or "frames" not in projected.needs
    ):
        raise AttachError(
            f"this recipe merges frames inside the tower of {name}, and no step over frames comes after "
            "the projector: it chooses the tokens of the video that the prompts have places for. Add one "
            "at Stage.PROJECTED whose matcher needs frames"
        )


def _check_restored(recipe: Recipe, name: str) -> None:
    """Raise if a step at the blocks, or one after it, needs an attention that its tokens are not in.

    Raises:
        AttachError: names what is needed.
    """
    step = recipe.step_at(Stage.BLOCK)
    if step is None:
        return
    asked = sorted(step.needs & FROM_ATTENTION)
    if step.attended == 0 and asked:
        raise AttachError(
            f"attended=0 removes tokens as they enter a block of {name}, before its attention, which shows "
            f"{', '.join(asked)}: use attended=1, or parts that need x"
        )
    if step.restorer is None:
        return
    if any(isinstance(part, Selector) and part.ragged for part in walk(step.matcher)):
        raise AttachError(
            "how many tokens stay comes from the data with this recipe, and a restorer needs a fixed "
            "count: use the variant of the recipe with a fixed token count"
        )
    for later in (recipe.step_at(Stage.FEATURES), recipe.step_at(Stage.PROJECTED)):
        asked = sorted(
            need
            for need in (frozenset[str]() if later is None else later.needs)
            if need in FROM_ATTENTION or layer_of(need) is not None
        )
        if asked:
            raise AttachError(
                f"this recipe removes tokens inside of the blocks of {name} and brings them back after "
                f"them; its later step needs {', '.join(asked)} about all tokens, and the blocks show it "
                "about those that were left: choose parts that need x"
            )


def _check_ragged(recipe: Recipe, step: Step, adapter: Adapter, name: str) -> None:
    """Raise if how many tokens stay comes from the data, where nothing can go by that.

    Raises:
        AttachError: the prompts of a language model are written before; a packed sequence has no padding;
            or the attention of later blocks would not know which tokens are padding.
    """
    parts = walk(step.matcher)
    if not any(isinstance(part, Selector) and part.ragged for part in parts):
        return
    wants = "How many tokens stay comes from the data with this recipe, and "
    if not adapter.layout_class.pads:
        raise AttachError(
            f"{wants}the packed sequence of {name} cannot hold padding tokens: use the variant of "
            "the recipe with a fixed token count"
        )
    if step.stage.name in ("projected", "llm") or adapter.projector:
        raise AttachError(
            f"{wants}the prompts of {name} need a token count that is known in advance: use the variant of "
            "the recipe with a fixed token count, or attach to the vision tower alone"
        )
    if step.stage.name == "block" and not recipe.proportional_attention:
        raise AttachError(
            f"{wants}padding tokens have mass 0, which the attention of later blocks must use: "
            "Recipe(..., proportional_attention=True)"
        )


def _shown_by_another(need: str, stage: str, adapter: Adapter) -> bool:
    """Whether a block of the tower shows this to a step after the last one: "cls_attention@5"."""
    name, _, _ = need.partition("@")
    layer = layer_of(need)
    if layer is None or stage not in ("features", "projected"):
        return False
    # Its queries and keys travel on, and what was computed of them: not the attention itself.
    shown = adapter.provides_at(stage) - {"attention", "grid", "x", "mass", "text"}
    return name in shown and adapter.layer(layer) is not None
