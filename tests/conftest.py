"""What all tests share: the same examples in every run, no deadlines on a busy machine, one thread.

The tensors are tiny: a second thread only waits for the first, and on busy cores that made the laws five
times slower.
"""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("tokenzoo", derandomize=True, deadline=None)
settings.load_profile("tokenzoo")
torch.set_num_threads(1)
