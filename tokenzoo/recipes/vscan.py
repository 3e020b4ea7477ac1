"""VScan: tokens chosen per window and globally; the others merge into them."""

from __future__ import annotations

from typing import Literal

from tokenzoo.matchers import REST, Nearest, PerWindow, SelectAssign, Then, TopK
from tokenzoo.mergers import Identity, Mean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.in_llm import Positions, by_next_layer, staged_steps
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def vscan(
    *,
    keep: int | float = 0.25,
    local: int | float = 0.5,
    window: int = 6,
    fill: Literal["even", "cap"] = "even",
    shallow: int | str = 5,
    deep: int | str = -2,
    layer: int | None = None,
    positions: Positions = "compact",
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep tokens by early CLS attention per window and by late CLS attention; merge the rest.

    Early layers attend to local details, late ones to the whole image. So a half of the
    tokens is chosen window by window with the attention of an early layer, the other half over the image
    with that of a late one. Each of the other tokens joins the kept token with the most similar projected
    features, and a kept token becomes the plain mean of itself and those. Kept tokens stay in raster order.
    A second stage, in the language model, keeps a third of them, by what the last token of the prompt
    attends to.

    Formula:
        local = in each window, the highest of  mean over the heads h of A_h[CLS, j]  in layer `shallow`
        global = of the others, the highest of the same in layer `deep`
        y_i = mean of x_i and all x_j that join i,   i = argmax over the kept of cos(x_i, x_j)

    Args:
        keep: patch tokens to keep: a count or a fraction. With `layer` it is what the layers of the
            language model read on average: 1.5 times as many after the projector, 0.5 times as many from
            `layer` on, where that is half of the layers. (authors' code: 64 of 576)
        local: share of them chosen window by window, rounded down, or their count. (paper: 0.5)
        window: rows and columns of a window. (authors' code: 6, Qwen2.5-VL: 4)
        fill: "even": equally many of each window; "cap": the highest, but no more than equally many.
            (authors' code: "even", Qwen2.5-VL: "cap")
        shallow: the layer whose attention chooses in the windows. (authors' code: 5, Qwen2.5-VL: 7)
        deep: the layer whose attention chooses in the image. (authors' code: -2, Qwen2.5-VL: 31)
        layer: the decoder layer of the second stage; None: no second stage. (authors' code: 16 of 32)
        positions: in the second stage: "compact", numbered anew, or "keep", with gaps. (authors' code:
            "compact", Qwen2.5-VL "keep")
        attention_source: "cls", or "received" for encoders without CLS. (authors' code: "received" for
            Qwen2.5-VL)

    Departures:
        - Where `local` is no multiple of the windows the authors' code loses the remainder (of 100 tokens
          on 24 x 24 it keeps 98: keep=98, local=48 here); here it goes to the next best, and the count is
          exact.
        - The second stage is off unless `layer` is given: a recipe for tensors has one step.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives, as theirs does in Qwen2.5-VL.

    Licence:
        MIT (Tencent/SelfEvolvingAgent)

    Reference:
        VScan, TMLR 2026, arXiv 2505.22654
    """
    near = PerWindow(attention_by(attention_source, layer=shallow), window, fill)
    stay = Then((local, near), (REST, TopK(attention_by(attention_source, layer=deep))))
    match = SelectAssign(stay, Nearest(Similarity("x")))
    if layer is None:
        return Recipe(Step(Stage.PROJECTED, Once(), match, Mean()), keep=keep)
    tower = Step(Stage.PROJECTED, Once(keep=1.5), match, Mean())
    return Recipe(
        tower, *staged_steps((layer,), (0.5,), by_next_layer(), Identity(), positions), keep=keep
    )
