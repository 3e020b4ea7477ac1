"""Broken parts, one promise each, which prove that each check can fail.

Each is followed by the most similar part that keeps the promise, which every property must accept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tests.mutants import adapters as adapters
from tests.mutants import matchers, mergers, restorers, schedules, scorers
from tests.mutants.mergers import Blurs as Blurs
from tests.mutants.scorers import LikesNaN as LikesNaN
from tests.mutants.tiny_vit import Loops
from tokenzoo.matchers import (
    Alternate,
    Anchored,
    DistinctPerGroup,
    Drop,
    Elbow,
    MarginalRelevance,
    MaxCoverage,
    Nearest,
    Protect,
    RunQuotas,
    SelectAssign,
    Strided,
    TopK,
)
from tokenzoo.mergers import CopyBack, Identity, Mean, WeightedMean
from tokenzoo.parts import Matcher, Part, Schedule, Scorer
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Mean as MeanSchedule
from tokenzoo.scorers import CLSAttention, FeatureNorm, Random, Similarity
from tokenzoo.temporal import FrameWindows

Subject = Part | Recipe | Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Mutant:
    """A part that lies.

    Attributes:
        violates: the property that it violates, and whose check must fail.
        broken: the part, a recipe around it, or a function that makes a model whose adapter it is.
        honest: the nearest that keeps all promises.
        of: the class that lies, and says how, where it is inside of something.
    """

    violates: str
    broken: Subject
    honest: Subject
    of: type | None = None

    @property
    def liar(self) -> type:
        return self.of or type(self.broken)


_honest = adapters.tiny(adapters.Adapted)
_first = matchers.FirstTokens()
_length, _cosine = FeatureNorm(), Similarity("x")


def _recipe(part: Scorer | Matcher | Schedule) -> Recipe:
    schedule, matcher, merger = MeanSchedule(), _first, WeightedMean()
    match part:
        case Scorer():
            matcher, merger = SelectAssign(TopK(part), Drop()), Identity()
        case Matcher():
            matcher = part
        case Schedule():
            schedule = part
    return Recipe(Step(Stage.BLOCK, schedule, matcher, merger), keep=0.5)


def _inside(
    violates: str, broken: Scorer | Matcher | Schedule, honest: Scorer | Matcher | Schedule
) -> Mutant:
    """A mutant that is a recipe around a part."""
    return Mutant(violates, _recipe(broken), _recipe(honest), type(broken))


def _adapter(violates: str, adapter: type[adapters.Adapted]) -> Mutant:
    return Mutant(violates, adapters.tiny(adapter), _honest, adapter)


# In the order of the properties.
BROKEN: tuple[Mutant, ...] = (
    Mutant("frozen_data", scorers.Thawed(), FeatureNorm()),
    Mutant("frozen_data", scorers.ListOption(), FeatureNorm()),
    Mutant("deterministic", scorers.Dice(), Random()),
    Mutant("deterministic", scorers.OwnDice(), Random(7)),
    Mutant("deterministic", scorers.Remembers(), FeatureNorm()),
    Mutant("input_untouched", scorers.InPlace(), FeatureNorm()),
    Mutant("input_untouched", mergers.SpendsMass(), Identity()),
    Mutant("needs_honest", scorers.Undeclared(), CLSAttention()),
    Mutant("needs_honest", scorers.OtherLayer(), CLSAttention(layer=-2)),
    Mutant("scores_formed", scorers.HalfPrecision(), FeatureNorm()),
    Mutant("scores_formed", scorers.ZeroByZero(), FeatureNorm()),
    Mutant("pairs_formed", scorers.Negative(), Similarity("x")),
    Mutant("pairs_formed", scorers.Falling(), Similarity("x", "sigmoid")),
    Mutant("selection_formed", matchers.Twice(), Strided()),
    Mutant("selection_formed", matchers.MiscountsGroups(), Strided()),
    Mutant("selection_formed", matchers.Recovers(_cosine), MaxCoverage(_cosine)),
    Mutant(
        "selection_formed",
        matchers.LeavesOutAlikes(_length, _cosine),
        DistinctPerGroup(_length, _cosine),
    ),
    Mutant("selection_formed", matchers.LosesTheSurplus(_length), RunQuotas(_length)),
    Mutant(
        "selection_formed",
        matchers.AlwaysAnAnchor(_length, _length),
        Anchored(_length, _length),
    ),
    Mutant("slots_formed", matchers.OutOfRange(), Nearest(Similarity("x"))),
    Mutant("segments_formed", matchers.CountsFromOne(), FrameWindows()),
    Mutant("sides_formed", matchers.LosesOne(), Alternate()),
    Mutant("sides_formed", matchers.GreedySplit(), Alternate()),
    Mutant("partition_formed", matchers.HoldsAll(FeatureNorm(), 0.8), Protect(FeatureNorm(), 0.8)),
    Mutant("features_formed", mergers.Upcasts(), Identity()),
    Mutant("restored_formed", restorers.MovesTheLeft(), CopyBack()),
    Mutant("restored_unmoved", restorers.ForgetsTheDropped(), CopyBack()),
    Mutant("restored_alone", restorers.MovesByTheBatch(), CopyBack()),
    Mutant("exact_budget", matchers.OneTooMany(), _first),
    Mutant("exact_budget", matchers.KeepsByValue(), _first),
    Mutant("plan_total", matchers.TwoPlaces(), _first),
    Mutant("plan_total", matchers.KeptTwice(), _first),
    Mutant("plans_compose", matchers.Slips(), _first),
    Mutant("fewest_honest", matchers.Boaster(), _first),
    Mutant("fewest_honest", matchers.Modest(), _first),
    Mutant("fewest_honest", matchers.Nobody(), _first),
    Mutant("protected_untouched", mergers.Blurs(), Mean()),
    Mutant("held_untouched", matchers.FalseHold(), _first),
    Mutant("conserved", mergers.LosesMass(), Identity()),
    Mutant("conserved", mergers.ClaimsSum(), WeightedMean()),
    Mutant("batch_independent", scorers.BatchMean(), FeatureNorm()),
    Mutant("batch_independent", matchers.CoversTheBatch(_cosine), MaxCoverage(_cosine)),
    Mutant("gradients", mergers.Detaches(), Mean()),
    Mutant("degenerate", scorers.NeedsTwo(), FeatureNorm()),
    Mutant("nan_harmless", scorers.RaisesOnNaN(), FeatureNorm()),
    Mutant("nan_lowest", scorers.LikesNaN(), FeatureNorm()),
    Mutant("nan_lowest", mergers.SpreadsNaN(), Mean()),
    Mutant(
        "nan_lowest",
        matchers.FirstOfNaN(_length, _cosine),
        MarginalRelevance(_length, _cosine),
    ),
    Mutant("static_shapes", scorers.Waits(), FeatureNorm()),
    Mutant("static_shapes", matchers.KeepsByValue(), _first),
    Mutant("static_shapes", matchers.CutsAtTheElbow(_length), Elbow(_length)),
    Mutant("options_checked", scorers.LooksUpLate(), FeatureNorm()),
    _inside("repr_is_code", scorers.Halves(), FeatureNorm()),
    _inside("saved_and_loaded", scorers.Unwritable(), FeatureNorm()),
    _inside("saved_and_loaded", scorers.Halves(), FeatureNorm()),
    _inside("budget_kept", matchers.HeavyToo(), _first),
    _inside("budget_kept", schedules.Tires(), MeanSchedule()),
    _inside("budget_refused", schedules.KeepsOneMore(), MeanSchedule()),
    Mutant("fits_somewhere", schedules.NeverFits(), MeanSchedule()),
    Mutant("counts_formed", schedules.Grows(), MeanSchedule()),
    Mutant("counts_formed", schedules.OneShort(), MeanSchedule()),
    Mutant("counts_possible", schedules.Overasks(), MeanSchedule()),
    Mutant("counts_exact", schedules.KeepsOneMore(), MeanSchedule()),
    Mutant("counts_exact", schedules.StopsShort(), MeanSchedule()),
    Mutant("counts_exact", schedules.Vague(), MeanSchedule()),
    Mutant("counts_exact", schedules.TooStrict(), MeanSchedule()),
    Mutant("counts_all", schedules.AlwaysTrims(), MeanSchedule()),
    Mutant("counts_pure", schedules.Tires(), MeanSchedule()),
    _adapter("identity_kept", adapters.Shifts),
    _adapter("identity_kept", adapters.WrongSecond),
    _adapter("detached_bare", adapters.LeavesHooks),
    _adapter("weights_untouched", adapters.TouchesWeights),
    Mutant("counts_planned", adapters.tiny(adapters.Adapted, Loops), _honest, Loops),
    _adapter("tower_described", adapters.MissesABlock),
    _adapter("tower_described", adapters.CountsCLS),
    _adapter("image_independent", adapters.BatchPool),
    _adapter("gradients_flow", adapters.CutsGradients),
    _adapter("copies_apart", adapters.RunsTheOriginal),
    _adapter("pooled_by_mass", adapters.PlainMean),
    _adapter("pooled_by_mass", adapters.NoFollowers),
    _adapter("evidence_fits", adapters.WrongGrid),
    _adapter("evidence_fits", adapters.WrongWidth),
)
