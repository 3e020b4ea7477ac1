"""tokenzoo: vision transformers and multimodal LLMs, faster by carrying fewer visual tokens.

    import tokenzoo

    tokenzoo.build("evoprune", ctr=0.25).attach(vit)     # a whole program

`build` makes a published method ready by name, `attach` splices it into a model, `plan` says exactly what
will happen, `reduce` applies it to bare tensors. A method is a choice of parts; see `parts`.
"""

from tokenzoo._core.deprecation import renamed as _renamed
from tokenzoo.adapter import Adapter as Adapter
from tokenzoo.affinity import Affinity as Affinity
from tokenzoo.budget import TokenBudget as TokenBudget
from tokenzoo.description import describe as describe
from tokenzoo.errors import TokenzooError as TokenzooError
from tokenzoo.evidence import Evidence as Evidence
from tokenzoo.hooks.handle import Attached as Attached
from tokenzoo.hooks.reduction import Event as Event
from tokenzoo.hookspecs import hookimpl as hookimpl
from tokenzoo.parts import Assigner as Assigner
from tokenzoo.parts import Matcher as Matcher
from tokenzoo.parts import Merger as Merger
from tokenzoo.parts import PairScorer as PairScorer
from tokenzoo.parts import Restorer as Restorer
from tokenzoo.parts import Schedule as Schedule
from tokenzoo.parts import Scorer as Scorer
from tokenzoo.parts import Selector as Selector
from tokenzoo.recipe import Recipe as Recipe
from tokenzoo.recipe import Stage as Stage
from tokenzoo.recipe import Step as Step
from tokenzoo.reduce import Reduced as Reduced
from tokenzoo.streaming import stream as stream
from tokenzoo.token_map import TokenMap as TokenMap
from tokenzoo.tokens import Tokens as Tokens
from tokenzoo.zoo import Method as Method
from tokenzoo.zoo import build as build
from tokenzoo.zoo import list_adapters as list_adapters
from tokenzoo.zoo import list_matchers as list_matchers
from tokenzoo.zoo import list_mergers as list_mergers
from tokenzoo.zoo import list_recipes as list_recipes
from tokenzoo.zoo import list_schedules as list_schedules
from tokenzoo.zoo import list_scorers as list_scorers
from tokenzoo.zoo import load as load

__version__ = "0.2.0"

__all__ = [
    "Adapter",
    "Affinity",
    "Assigner",
    "Attached",
    "Event",
    "Evidence",
    "Matcher",
    "Merger",
    "Method",
    "PairScorer",
    "Recipe",
    "Reduced",
    "Restorer",
    "Schedule",
    "Scorer",
    "Selector",
    "Stage",
    "Step",
    "TokenBudget",
    "TokenMap",
    "Tokens",
    "TokenzooError",
    "build",
    "describe",
    "hookimpl",
    "list_adapters",
    "list_matchers",
    "list_mergers",
    "list_recipes",
    "list_schedules",
    "list_scorers",
    "load",
    "stream",
]

__getattr__ = _renamed(__name__, {"Budget": "TokenBudget", "Plan": "TokenMap", "Zoo": "Method"})
