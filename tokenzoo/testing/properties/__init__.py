"""The properties that all parts must have: one function each, whose docstring states the property.

A property is called with a subject and one case, and raises `PropertyViolation` if it does not hold. Where
it does not apply (nothing was dropped, nothing was merged, too few tokens), it holds.
"""

from collections.abc import Mapping

from tokenzoo.testing.properties.adapters import (
    attached_once,
    copies_apart,
    counts_planned,
    detached_bare,
    evidence_fits,
    gradients_flow,
    identity_kept,
    image_independent,
    pooled_by_mass,
    tower_described,
    weights_untouched,
)
from tokenzoo.testing.properties.alike import batch_independent, deterministic
from tokenzoo.testing.properties.counts import (
    exact_budget,
    fewest_honest,
    plan_total,
    plans_compose,
)
from tokenzoo.testing.properties.forms import (
    features_formed,
    pairs_formed,
    partition_formed,
    scores_formed,
    segments_formed,
    selection_formed,
    sides_formed,
    slots_formed,
)
from tokenzoo.testing.properties.honest import frozen_data, needs_honest, static_shapes
from tokenzoo.testing.properties.learning import gradients
from tokenzoo.testing.properties.odd import degenerate, nan_harmless, nan_lowest
from tokenzoo.testing.properties.options import options_checked
from tokenzoo.testing.properties.recipes import (
    budget_kept,
    budget_refused,
    repr_is_code,
    saved_and_loaded,
)
from tokenzoo.testing.properties.restorers import (
    restored_alone,
    restored_formed,
    restored_unmoved,
)
from tokenzoo.testing.properties.schedules import (
    counts_all,
    counts_exact,
    counts_formed,
    counts_possible,
    counts_pure,
    fits_somewhere,
)
from tokenzoo.testing.properties.untouched import (
    conserved,
    held_untouched,
    input_untouched,
    protected_untouched,
)
from tokenzoo.testing.property import Property

# In the order in which they are checked: first those whose violation would make others fail.
PROPERTIES: Mapping[str, Property] = {
    prop.name: prop
    for prop in (
        *(frozen_data, deterministic, input_untouched, needs_honest),
        *(scores_formed, pairs_formed, selection_formed, slots_formed, sides_formed),
        *(partition_formed, segments_formed, features_formed),
        *(restored_formed, restored_unmoved, restored_alone),
        *(exact_budget, plan_total, plans_compose),
        *(fewest_honest, protected_untouched, held_untouched, conserved, batch_independent),
        *(gradients, degenerate, nan_harmless, nan_lowest, static_shapes),
        options_checked,
        *(repr_is_code, saved_and_loaded, budget_kept, budget_refused),
        *(fits_somewhere, counts_formed, counts_possible, counts_exact, counts_all, counts_pure),
        *(identity_kept, detached_bare, weights_untouched, counts_planned, tower_described),
        *(
            image_independent,
            gradients_flow,
            copies_apart,
            attached_once,
            pooled_by_mass,
            evidence_fits,
        ),
    )
}
"""Every property, by its name."""
