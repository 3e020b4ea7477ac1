"""PruneSID: distinct, attended tokens of groups that vary alike."""

from __future__ import annotations

from tokenzoo._core.kinds import NonNegative, Share
from tokenzoo.matchers import DistinctPerGroup, Drop, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def prunesid(
    *,
    keep: int | float = 0.25,
    groups: Share = 0.25,
    threshold: NonNegative = 1 / 32,
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep attended tokens of every group of tokens that vary alike, and few that are alike in one group.

    A principal component of an image is a pattern of tokens whose channels vary together; each token
    belongs to the component in which it weighs most. So the groups stand for what is in the image, and each
    keeps some tokens. In a group, the most attended token stays, those too similar to it step back, then
    the next one stays, and so on: non-maximum suppression. Groups with many distinct tokens keep more. The
    others are dropped. Kept tokens stay in raster order.

    Formula:
        group_j = argmax over g of |V_jg|,   V: the first groups * keep principal components of sigmoid(x),
                  one weight per token; channels are the samples
        i suppresses j if both are in one group, a_i > a_j,  cos(x_i, x_j) > threshold * keep * mean cosine,
                  and nobody suppresses i;   a_j = mean over the heads h of A_h[CLS, j]

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 192, 128 or 64 of 576)
        groups: number of groups for each kept token, rounded down. (authors' code: 1/4)
        threshold: of the cosine, for each kept token, in units of the mean over all pairs. (authors' code:
            1/32)
        attention_source: "cls", or "received" for encoders without CLS. (ours)

    Departures:
        - The authors' components come from a random start and differ from run to run; here the start is
          fixed, and a few multiplications find the components as closely.
        - Quotas are one token for each group, and Webster's rounding of the numbers of distinct ones. The
          authors round their running sum, and cap a group at 5 for each 64 kept tokens.
        - The authors count CLS as one of the kept tokens; prefix tokens are never counted here.
        - ONNX has no QR decomposition: an export is refused.
        - Their dynamic ratio, which keeps more of images with more in them, is not here.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        Apache-2.0 (ZhengyaoFang/PruneSID, by its README)

    Reference:
        PruneSID, ICLR 2026, arXiv 2603.09480
    """
    scorer = attention_by(attention_source)
    match = SelectAssign(DistinctPerGroup(scorer, Similarity("x"), groups, threshold), Drop())
    return Recipe(Step(Stage.FEATURES, Once(), match, Identity()), keep=keep)
