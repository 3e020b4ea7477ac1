"""Parts that learn: where their weights are, and for which model they were made.

A learned part is frozen data like any other part, and holds its weights in one module, `Weights`, with one
set of tensors for each block where the part works. The sets are made when the recipe is attached: then the
width, the blocks and the token counts are known. On bare tensors an unattached part takes its first
values, a function of its seed alone.

A part may also be a `torch.nn.Module` itself, or have one as a field. `modules` finds both kinds.
"""

from .gate import Gate as Gate
from .part import Learned as Learned
from .part import modules as modules
from .part import parts_that_learn as parts_that_learn
from .soft import SoftMatcher as SoftMatcher
from .soft import over_tokens as over_tokens
from .weights import Made as Made
from .weights import Start as Start
from .weights import Starts as Starts
from .weights import Weights as Weights
