"""What must hold for everybody's parts, whoever wrote them: one function a law, its docstring the promise.

A law takes a subject and one case: it returns nothing, or raises `LawBroken`. Where a case does not concern
it (nothing was dropped, nothing was merged, too few tokens) it holds.
"""

from collections.abc import Mapping

from tokenzoo.testing.law import Law
from tokenzoo.testing.laws.adapters import (
    attached_once,
    copies_apart,
    counts_planned,
    detached_bare,
    gradients_flow,
    identity_kept,
    image_independent,
    pooled_by_mass,
    shown_true,
    tower_told,
    weights_untouched,
)
from tokenzoo.testing.laws.alike import batch_independent, deterministic
from tokenzoo.testing.laws.counts import exact_budget, fewest_honest, plan_total, plans_compose
from tokenzoo.testing.laws.forms import (
    features_formed,
    pairs_formed,
    partition_formed,
    scores_formed,
    selection_formed,
    sides_formed,
    slots_formed,
)
from tokenzoo.testing.laws.honest import frozen_data, needs_honest, static_shapes
from tokenzoo.testing.laws.learning import gradients
from tokenzoo.testing.laws.odd import degenerate, nan_harmless, nan_lowest
from tokenzoo.testing.laws.options import options_checked
from tokenzoo.testing.laws.recipes import (
    budget_kept,
    budget_refused,
    repr_is_code,
    saved_and_loaded,
)
from tokenzoo.testing.laws.schedules import (
    counts_all,
    counts_exact,
    counts_formed,
    counts_possible,
    counts_pure,
    fits_somewhere,
)
from tokenzoo.testing.laws.untouched import (
    conserved,
    held_untouched,
    input_untouched,
    protected_untouched,
)

# In the order in which they are tried: what would blur the others first.
LAWS: Mapping[str, Law] = {
    law.name: law
    for law in (
        *(frozen_data, deterministic, input_untouched, needs_honest),
        *(scores_formed, pairs_formed, selection_formed, slots_formed, sides_formed),
        *(partition_formed, features_formed, exact_budget, plan_total, plans_compose),
        *(fewest_honest, protected_untouched, held_untouched, conserved, batch_independent),
        *(gradients, degenerate, nan_harmless, nan_lowest, static_shapes),
        options_checked,
        *(repr_is_code, saved_and_loaded, budget_kept, budget_refused),
        *(fits_somewhere, counts_formed, counts_possible, counts_exact, counts_all, counts_pure),
        *(identity_kept, detached_bare, weights_untouched, counts_planned, tower_told),
        *(
            image_independent,
            gradients_flow,
            copies_apart,
            attached_once,
            pooled_by_mass,
            shown_true,
        ),
    )
}
"""Every law, by its name."""
