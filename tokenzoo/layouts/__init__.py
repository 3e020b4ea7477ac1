"""How the tokens of the images of a pass lie in a tensor: in a batch, or packed in one sequence."""

from .base import ProofCase as ProofCase
from .base import SizeBucket as SizeBucket
from .base import TokenLayout as TokenLayout
from .batched import BatchedLayout as BatchedLayout
from .packed import PackedLayout as PackedLayout
