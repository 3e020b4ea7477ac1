"""EarlyTom: frames merged inside the encoder, then tokens chosen by the place of a frame in its segment."""

from __future__ import annotations

from typing import Annotated, Literal

from tokenzoo._core.kinds import Range, Share, Words
from tokenzoo._core.validation import check_choice, is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import Drop, EndsAndMiddles, NeighbourPairs, SelectAssign
from tokenzoo.mergers import Identity, Mean, NeighbourBlend
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.schedules import Share as ShareOf
from tokenzoo.scorers import attention_by
from tokenzoo.scorers.attention_by import AttentionSource
from tokenzoo.temporal import StreamingCuts


@register_recipe
def earlytom(
    *,
    keep: int | float = 0.25,
    blocks: Annotated[
        tuple[int, ...], Words("blocks of the tower, ascending; () merges none")
    ] = (),
    frames_left: Annotated[
        float, Range(0.5, 1), Words("a share of the frames, in [0.5, 1]")
    ] = 0.75,
    threshold: Annotated[float, Range(-1, 2)] = 0.65,
    longest: Annotated[int, Range(2)] = 6,
    memory: Share = 0.9,
    mixing: Literal["blend", "mean"] = "blend",
    attention_source: AttentionSource = "received",
) -> Recipe:
    """Merge similar neighbouring frames inside the encoder, then choose tokens of the frames that are left.

    After some blocks of the encoder, a clip is cut into segments, and of the frames inside a segment pairs
    of neighbours are merged. After the projector the clip is cut again. The first and last frame of a
    segment keep the tokens that receive most attention; the frames between them keep one token of each of
    as many windows as they may keep, so that no attention sink takes all places.

    Formula:
        e = memory * c + (1 - memory) * e,   c: mean cosine of a frame with the first of its segment
        a segment ends where e < threshold, or it has longest - 1 frames
        y = w x_i + (1 - w) x_(i+1),   w = s_i / (s_i + s_(i+1)),   s_i: mean cosine of frames i and i + 1

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction. (authors' code: 0.1 to 0.25)
        blocks: frames are merged before these blocks; (): only the choice after the projector is made,
            which models without stacked videos can do, too. (authors' code: after the blocks 8, 14 and
            20 of 26, so (9, 15, 21))
        frames_left: share of the frames that each merge leaves. (ours; theirs comes from the data, at
            least 0.6 with the released settings)
        threshold: on e. (authors' code: 0.3 to 0.8, by benchmark and budget)
        longest: M; a segment has fewer frames. (authors' code: 6)
        memory: weight of the newest frame. (authors' code: 0.9)
        mixing: of two frames: "blend", or the "mean". (authors' code: "blend")
        attention_source: "received", or "cls". (authors' code: "received")

    Departures:
        - Each merge leaves a fixed share of the frames, so that the counts are known: pairs that the rule
          would merge come first, then the most similar neighbours. Theirs merges as many as the rule finds.
        - Exactly `keep` tokens stay; theirs rounds up in each frame.
        - The attention is that of the last block that is read; theirs is that of the last merge, and is
          merged as the frames are. The segments of the choice come from the projected tokens.
        - A frame that nothing merges with stays; theirs loses the last frame between the ends of a segment.
        - The second stage inside the language model, as in HoliTom, is not built here.

    Licence:
        Apache-2.0 (viridisGreen/EarlyTom)

    Reference:
        EarlyTom, CVPR 2026, arXiv 2605.30010
    """
    check_choice("mixing", mixing, "blend", "mean")
    whole = is_kind(blocks, tuple | list) and all(type(one) is int and one > 0 for one in blocks)
    if not whole or sorted(set(blocks)) != [*blocks]:
        raise BadArgumentError(
            f"blocks={blocks!r}; it must be a tuple of ascending ints >= 1, or () to merge no frames"
        )
    cuts = StreamingCuts(threshold, longest, memory)
    pairs = NeighbourPairs(threshold, longest, memory)
    merger = NeighbourBlend() if mixing == "blend" else Mean()
    merges = [Step(Stage.FRAMES(block), ShareOf(frames_left), pairs, merger) for block in blocks]
    chosen = SelectAssign(EndsAndMiddles(attention_by(attention_source), cuts), Drop())
    return Recipe(*merges, Step(Stage.PROJECTED, Once(), chosen, Identity()), keep=keep)
