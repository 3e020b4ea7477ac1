"""What is wrong with a block, or with the tokens that reach it: the messages of `Site`."""

from __future__ import annotations

from torch import Tensor

from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.errors import AttachError
from tokenzoo.hooks.state import ReductionState
from tokenzoo.layouts import TokenLayout

REENTRANT = (
    "{where} runs under gradient checkpointing with use_reentrant=True, where what it makes of fewer tokens"
    " would get no gradients: model.gradient_checkpointing_enable(dict(use_reentrant=False))"
)

TUPLE = (
    "{where} returns a tuple, and its tokens alone are expected: an adapter of ours does not fit this "
    "version of the model's library"
)


def check_length(x: Tensor, state: ReductionState, name: str) -> None:
    """Raise if a hook put tokens in, or took some away, since the pass began.

    Args:
        x: the tokens in the block, `[b, prefix + n * p, c]` or a packed sequence `[r, c]`.
        state: of the pass.
        name: of the block.

    Raises:
        AttachError: there are not as many tokens as the state knows.
    """
    layout = state.layout
    if state.steps.block is None or state.steps.trial or not layout.buckets:
        return
    known, found = layout.rows(), layout.length(x)
    if found != known:
        raise AttachError(
            f"{name} has {found} tokens where {known} are expected ({layout.prefix} of them prefix tokens)"
            ": a hook added or removed some. Add prompts before the first block, attach after "
            "that, and declare them: attach(..., prefix=...)"
        )


def wrong_order(path: BlockPath) -> AttachError:
    """The second branch runs before the attention."""
    return AttachError(
        f"{path.name}.{path.branch2_in} runs before {path.attention}: this block is not "
        "x + attention, x + MLP in the order that the adapter describes"
    )


def wrong_calls(found: str, calls: int, adapter: Adapter, layout: TokenLayout, trial: bool) -> str:
    """Why the attention of a block was not seen as it must be.

    Args:
        found: what is wrong with the calls (`TokenLayout.check_calls`).
        calls: how many were seen.
        adapter: of the model.
        layout: of the tokens.
        trial: whether this is the proof at attach time.
    """
    if calls and not layout.segmented:
        reason = "This block attends more than once, and one attention a block is followed"
    elif not adapter.uses_attention_interface:
        reason = (
            "Is fused attention off? timm: set fused_attn = True on the attention modules, or "
            "timm.layers.set_fused_attn(True) before the model is made"
        )
    elif trial:
        reason = "Its forward does not call the attention function that the model's config names"
    else:
        reason = (
            "The attention implementation was changed while the recipe was attached: "
            "set_attn_implementation(...) takes our watch away, call it before attach"
        )
    return f"{found}. {reason}"
