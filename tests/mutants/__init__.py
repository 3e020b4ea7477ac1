"""Broken parts, one promise each, which prove that each check can fail.

Each is followed by the most similar part that keeps the promise, which every property must accept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from tests.mutants import adapters as adapters
from tests.mutants.adapters import (
    Adapted,
    BatchPool,
    CountsCLS,
    CutsGradients,
    LeavesHooks,
    MissesABlock,
    NoFollowers,
    PlainMean,
    RunsTheOriginal,
    Shifts,
    TouchesWeights,
    WrongGrid,
    WrongSecond,
    WrongWidth,
    tiny,
)
from tests.mutants.matchers import (
    Boaster,
    FalseHold,
    FirstTokens,
    GreedySplit,
    HeavyToo,
    HoldsAll,
    KeepsByValue,
    KeptTwice,
    LosesOne,
    MiscountsGroups,
    Modest,
    Nobody,
    OneTooMany,
    OutOfRange,
    Slips,
    Twice,
    TwoPlaces,
)
from tests.mutants.mergers import (
    Blurs,
    ClaimsSum,
    Detaches,
    LosesMass,
    SpendsMass,
    SpreadsNaN,
    Upcasts,
)
from tests.mutants.schedules import (
    AlwaysTrims,
    Grows,
    KeepsOneMore,
    NeverFits,
    OneShort,
    Overasks,
    StopsShort,
    Tires,
    TooStrict,
    Vague,
)
from tests.mutants.scorers import (
    BatchMean,
    Dice,
    Falling,
    HalfPrecision,
    Halves,
    InPlace,
    LikesNaN,
    ListOption,
    LooksUpLate,
    NeedsTwo,
    Negative,
    OtherLayer,
    OwnDice,
    RaisesOnNaN,
    Remembers,
    Thawed,
    Undeclared,
    Unwritable,
    Waits,
    ZeroByZero,
)
from tests.mutants.tiny_vit import Loops
from tokenzoo.matchers import (
    Alternate,
    Drop,
    Nearest,
    Protect,
    SelectAssign,
    Strided,
    TopK,
)
from tokenzoo.mergers import Identity, Mean, WeightedMean
from tokenzoo.parts import Part, Schedule, Scorer
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Mean as MeanSchedule
from tokenzoo.scorers import CLSAttention, FeatureNorm, Random, Similarity

Subject = Part | Recipe | Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Mutant:
    """A part that lies.

    Attributes:
        violates: the property that it violates, and whose check must fail.
        broken: the part, a recipe around it, or a function that makes a model whose adapter it is.
        honest: the nearest that keeps all promises.
        of: the class that lies, where it is inside of something.
    """

    violates: str
    broken: Subject
    honest: Subject
    of: type | None = None

    @property
    def liar(self) -> type:
        """The class that lies; its docstring says how."""
        return self.of or type(self.broken)


def _scoring(scorer: Scorer) -> Recipe:
    return Recipe(
        Step(Stage.BLOCK, MeanSchedule(), SelectAssign(TopK(scorer), Drop()), Identity()), keep=0.5
    )


def _matching(matcher: object, schedule: Schedule | None = None) -> Recipe:
    return Recipe(Step(Stage.BLOCK, schedule or MeanSchedule(), matcher, WeightedMean()), keep=0.5)  # pyright: ignore[reportArgumentType]


def _adapter(violates: str, adapter: type[Adapted]) -> Mutant:
    return Mutant(violates, tiny(adapter), tiny(Adapted), adapter)


def _model(violates: str, model: type[nn.Module]) -> Mutant:
    return Mutant(violates, partial(model, Adapted), tiny(Adapted), model)


_first = SelectAssign(Strided(), Nearest(Similarity("x")))

BROKEN: tuple[Mutant, ...] = (
    Mutant("frozen_data", Thawed(), FeatureNorm()),
    Mutant("frozen_data", ListOption(), FeatureNorm()),
    Mutant("deterministic", Dice(), Random()),
    Mutant("deterministic", OwnDice(), Random(7)),
    Mutant("deterministic", Remembers(), FeatureNorm()),
    Mutant("input_untouched", InPlace(), FeatureNorm()),
    Mutant("input_untouched", SpendsMass(), Identity()),
    Mutant("needs_honest", Undeclared(), CLSAttention()),
    Mutant("needs_honest", OtherLayer(), CLSAttention(layer=-2)),
    Mutant("scores_formed", HalfPrecision(), FeatureNorm()),
    Mutant("scores_formed", ZeroByZero(), FeatureNorm()),
    Mutant("pairs_formed", Negative(), Similarity("x")),
    Mutant("pairs_formed", Falling(), Similarity("x", "sigmoid")),
    Mutant("selection_formed", Twice(), Strided()),
    Mutant("selection_formed", MiscountsGroups(), Strided()),
    Mutant("slots_formed", OutOfRange(), Nearest(Similarity("x"))),
    Mutant("sides_formed", LosesOne(), Alternate()),
    Mutant("sides_formed", GreedySplit(), Alternate()),
    Mutant("partition_formed", HoldsAll(FeatureNorm(), 0.8), Protect(FeatureNorm(), 0.8)),
    Mutant("features_formed", Upcasts(), Identity()),
    Mutant("exact_budget", OneTooMany(), FirstTokens()),
    Mutant("exact_budget", KeepsByValue(), FirstTokens()),
    Mutant("plan_total", TwoPlaces(), FirstTokens()),
    Mutant("plan_total", KeptTwice(), FirstTokens()),
    Mutant("plans_compose", Slips(), FirstTokens()),
    Mutant("fewest_honest", Boaster(), FirstTokens()),
    Mutant("fewest_honest", Modest(), FirstTokens()),
    Mutant("fewest_honest", Nobody(), FirstTokens()),
    Mutant("protected_untouched", Blurs(), Mean()),
    Mutant("held_untouched", FalseHold(), FirstTokens()),
    Mutant("conserved", LosesMass(), Identity()),
    Mutant("conserved", ClaimsSum(), WeightedMean()),
    Mutant("batch_independent", BatchMean(), FeatureNorm()),
    Mutant("gradients", Detaches(), Mean()),
    Mutant("degenerate", NeedsTwo(), FeatureNorm()),
    Mutant("nan_harmless", RaisesOnNaN(), FeatureNorm()),
    Mutant("nan_lowest", LikesNaN(), FeatureNorm()),
    Mutant("nan_lowest", SpreadsNaN(), Mean()),
    Mutant("static_shapes", Waits(), FeatureNorm()),
    Mutant("static_shapes", KeepsByValue(), FirstTokens()),
    Mutant("options_checked", LooksUpLate(), FeatureNorm()),
    Mutant("repr_is_code", _scoring(Halves()), _scoring(FeatureNorm()), Halves),
    Mutant("saved_and_loaded", _scoring(Unwritable()), _scoring(FeatureNorm()), Unwritable),
    Mutant("saved_and_loaded", _scoring(Halves()), _scoring(FeatureNorm()), Halves),
    Mutant("budget_kept", _matching(HeavyToo()), _matching(FirstTokens()), HeavyToo),
    Mutant("budget_kept", _matching(_first, Tires()), _matching(_first), Tires),
    Mutant("budget_refused", _matching(_first, KeepsOneMore()), _matching(_first), KeepsOneMore),
    Mutant("fits_somewhere", NeverFits(), MeanSchedule()),
    Mutant("counts_formed", Grows(), MeanSchedule()),
    Mutant("counts_formed", OneShort(), MeanSchedule()),
    Mutant("counts_possible", Overasks(), MeanSchedule()),
    Mutant("counts_exact", KeepsOneMore(), MeanSchedule()),
    Mutant("counts_exact", StopsShort(), MeanSchedule()),
    Mutant("counts_exact", Vague(), MeanSchedule()),
    Mutant("counts_exact", TooStrict(), MeanSchedule()),
    Mutant("counts_all", AlwaysTrims(), MeanSchedule()),
    Mutant("counts_pure", Tires(), MeanSchedule()),
    _adapter("identity_kept", Shifts),
    _adapter("identity_kept", WrongSecond),
    _adapter("detached_bare", LeavesHooks),
    _adapter("weights_untouched", TouchesWeights),
    _model("counts_planned", Loops),
    _adapter("tower_described", MissesABlock),
    _adapter("tower_described", CountsCLS),
    _adapter("image_independent", BatchPool),
    _adapter("gradients_flow", CutsGradients),
    _adapter("copies_apart", RunsTheOriginal),
    _adapter("pooled_by_mass", PlainMean),
    _adapter("pooled_by_mass", NoFollowers),
    _adapter("evidence_fits", WrongGrid),
    _adapter("evidence_fits", WrongWidth),
)
"""Every one of them, in the order of the properties."""
