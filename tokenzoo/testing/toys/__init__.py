"""Parts that break one promise each: what the laws have to catch, lest they hold of anything.

Beside each stands the nearest part that keeps the promise, which every law must let pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

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
from tokenzoo.testing.toys import adapters as adapters
from tokenzoo.testing.toys.adapters import (
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
from tokenzoo.testing.toys.matchers import (
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
from tokenzoo.testing.toys.mergers import (
    Blurs,
    ClaimsSum,
    Detaches,
    LosesMass,
    SpendsMass,
    SpreadsNaN,
    Upcasts,
)
from tokenzoo.testing.toys.schedules import (
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
from tokenzoo.testing.toys.scorers import (
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
from tokenzoo.testing.toys.tiny_vit import Loops

Subject = Part | Recipe | Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Toy:
    """A part that lies.

    Attributes:
        law: the promise that it breaks, and that must catch it.
        broken: the part, a recipe around it, or a function that makes a model whose adapter it is.
        honest: the nearest that keeps all promises.
        of: the class that lies, where it is inside of something.
    """

    law: str
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


def _adapter(law: str, adapter: type[Adapted]) -> Toy:
    return Toy(law, tiny(adapter), tiny(Adapted), adapter)


def _model(law: str, model: type[nn.Module]) -> Toy:
    return Toy(law, partial(model, Adapted), tiny(Adapted), model)


_first = SelectAssign(Strided(), Nearest(Similarity("x")))

BROKEN: tuple[Toy, ...] = (
    Toy("frozen_data", Thawed(), FeatureNorm()),
    Toy("frozen_data", ListOption(), FeatureNorm()),
    Toy("deterministic", Dice(), Random()),
    Toy("deterministic", OwnDice(), Random(7)),
    Toy("deterministic", Remembers(), FeatureNorm()),
    Toy("input_untouched", InPlace(), FeatureNorm()),
    Toy("input_untouched", SpendsMass(), Identity()),
    Toy("needs_honest", Undeclared(), CLSAttention()),
    Toy("needs_honest", OtherLayer(), CLSAttention(layer=-2)),
    Toy("scores_formed", HalfPrecision(), FeatureNorm()),
    Toy("scores_formed", ZeroByZero(), FeatureNorm()),
    Toy("pairs_formed", Negative(), Similarity("x")),
    Toy("pairs_formed", Falling(), Similarity("x", "sigmoid")),
    Toy("selection_formed", Twice(), Strided()),
    Toy("selection_formed", MiscountsGroups(), Strided()),
    Toy("slots_formed", OutOfRange(), Nearest(Similarity("x"))),
    Toy("sides_formed", LosesOne(), Alternate()),
    Toy("sides_formed", GreedySplit(), Alternate()),
    Toy("partition_formed", HoldsAll(FeatureNorm(), 0.8), Protect(FeatureNorm(), 0.8)),
    Toy("features_formed", Upcasts(), Identity()),
    Toy("exact_budget", OneTooMany(), FirstTokens()),
    Toy("exact_budget", KeepsByValue(), FirstTokens()),
    Toy("plan_total", TwoPlaces(), FirstTokens()),
    Toy("plan_total", KeptTwice(), FirstTokens()),
    Toy("plans_compose", Slips(), FirstTokens()),
    Toy("fewest_honest", Boaster(), FirstTokens()),
    Toy("fewest_honest", Modest(), FirstTokens()),
    Toy("fewest_honest", Nobody(), FirstTokens()),
    Toy("protected_untouched", Blurs(), Mean()),
    Toy("held_untouched", FalseHold(), FirstTokens()),
    Toy("conserved", LosesMass(), Identity()),
    Toy("conserved", ClaimsSum(), WeightedMean()),
    Toy("batch_independent", BatchMean(), FeatureNorm()),
    Toy("gradients", Detaches(), Mean()),
    Toy("degenerate", NeedsTwo(), FeatureNorm()),
    Toy("nan_harmless", RaisesOnNaN(), FeatureNorm()),
    Toy("nan_lowest", LikesNaN(), FeatureNorm()),
    Toy("nan_lowest", SpreadsNaN(), Mean()),
    Toy("static_shapes", Waits(), FeatureNorm()),
    Toy("static_shapes", KeepsByValue(), FirstTokens()),
    Toy("options_checked", LooksUpLate(), FeatureNorm()),
    Toy("repr_is_code", _scoring(Halves()), _scoring(FeatureNorm()), Halves),
    Toy("saved_and_loaded", _scoring(Unwritable()), _scoring(FeatureNorm()), Unwritable),
    Toy("saved_and_loaded", _scoring(Halves()), _scoring(FeatureNorm()), Halves),
    Toy("budget_kept", _matching(HeavyToo()), _matching(FirstTokens()), HeavyToo),
    Toy("budget_kept", _matching(_first, Tires()), _matching(_first), Tires),
    Toy("budget_refused", _matching(_first, KeepsOneMore()), _matching(_first), KeepsOneMore),
    Toy("fits_somewhere", NeverFits(), MeanSchedule()),
    Toy("counts_formed", Grows(), MeanSchedule()),
    Toy("counts_formed", OneShort(), MeanSchedule()),
    Toy("counts_possible", Overasks(), MeanSchedule()),
    Toy("counts_exact", KeepsOneMore(), MeanSchedule()),
    Toy("counts_exact", StopsShort(), MeanSchedule()),
    Toy("counts_exact", Vague(), MeanSchedule()),
    Toy("counts_exact", TooStrict(), MeanSchedule()),
    Toy("counts_all", AlwaysTrims(), MeanSchedule()),
    Toy("counts_pure", Tires(), MeanSchedule()),
    _adapter("identity_kept", Shifts),
    _adapter("identity_kept", WrongSecond),
    _adapter("detached_bare", LeavesHooks),
    _adapter("weights_untouched", TouchesWeights),
    _model("counts_planned", Loops),
    _adapter("tower_told", MissesABlock),
    _adapter("tower_told", CountsCLS),
    _adapter("image_independent", BatchPool),
    _adapter("gradients_flow", CutsGradients),
    _adapter("copies_apart", RunsTheOriginal),
    _adapter("pooled_by_mass", PlainMean),
    _adapter("pooled_by_mass", NoFollowers),
    _adapter("shown_true", WrongGrid),
    _adapter("shown_true", WrongWidth),
)
"""Every one of them, in the order of the laws."""
