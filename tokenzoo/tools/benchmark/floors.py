"""The share of operations that remains under a plan: a lower bound of a candidate's relative time.

Counted are matrix products: those of the tower's blocks (`TokenBudget.operations`), and of the language
model's layers and its head. Attention is counted whole, as if it were not causal. Projector, pooling,
embeddings, norms and the selection itself are not counted, so a time can be above its floor by these alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenzoo.adapter import Adapter
from tokenzoo.budget import TokenBudget
from tokenzoo.hooks.handle import Attached
from tokenzoo.tools.benchmark.workload import Workload


def operations(work: Workload, attached: Attached | None) -> dict[str, float]:
    """Count the operations of each part of one call; {} if no adapter supports the model.

    Args:
        work: the call.
        attached: a recipe on a copy of its model; None: the bare one.
    """
    if work.adapter is None:
        return {}
    encoder = sum(_plan(work.adapter, attached, *frame).operations for frame in work.frames)
    if not work.multimodal:
        return {"encoder": encoder}
    text = work.model.config.text_config
    prefill = work.sizes.batch * layers(text, prompts(work, attached))
    whole = encoder + prefill + work.sizes.batch * 2 * text.hidden_size * text.vocab_size
    return {"encoder": encoder, "prefill": prefill, "first_token": whole}


def prompts(work: Workload, attached: Attached | None) -> tuple[int, ...]:
    """Return the number of tokens of one prompt that enter each layer of the language model."""
    given: Any = work.given
    depth, length = work.model.config.text_config.num_hidden_layers, given["input_ids"].shape[1]
    if attached is None:
        return (length,) * depth
    adapter: Any = attached.adapter

    found = adapter.visuals(given, attached.token_plan)
    each = [visual for several in found.values() for visual in several]
    words = length - sum(visual.full for visual in each) // work.sizes.batch

    def entering(layer: int) -> int:
        visible = sum(visual.entering(attached.recipe, layer) for visual in each)
        return words + visible // work.sizes.batch

    return tuple(map(entering, range(depth)))


def layers(text: Any, entering: Sequence[int]) -> int:
    """Count the operations of a language model's layers.

    Args:
        text: its configuration; its MLP has three matrices.
        entering: number of tokens that enter each layer.
    """
    width, heads = text.hidden_size, text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // heads
    products = 2 * width * head * (2 * heads + 2 * text.num_key_value_heads)
    products += 6 * width * text.intermediate_size
    return sum(n * products + 4 * n * n * heads * head for n in entering)


def after_tower(work: Workload, attached: Attached | None) -> tuple[int, ...]:
    """Patch tokens that leave the encoder, of each kind of image; () if no adapter supports the model."""
    if work.adapter is None:
        return ()
    kinds = dict.fromkeys(work.frames)
    if attached is None:
        return tuple(tokens for tokens, _ in kinds)
    return tuple(attached.visual_tokens(*kind) for kind in kinds)


def _plan(adapter: Adapter, attached: Attached | None, tokens: int, frames: int) -> TokenBudget:
    if attached is not None:
        return attached.plan(tokens, frames)
    depth = len(adapter.blocks())
    return TokenBudget(
        tokens=tokens,
        entering=tokens,
        blocks=(tokens,) * depth,
        features=tokens,
        prefix=adapter.prefix,
        width=adapter.width,
        hidden=adapter.mlp_dim,
        patches=adapter.group,
        reach=adapter.reach,
    )
