"""What all tests share: the same examples in every run, no deadlines on a busy machine, two threads."""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("tokenzoo", derandomize=True, deadline=None)
settings.load_profile("tokenzoo")
torch.set_num_threads(2)
