"""Training of the parts of a recipe, and of a model with reduction on: what `tokenzoo train` runs."""

from .checkpoint import as_json as as_json
from .loop import Interrupted as Interrupted
from .loop import Progress as Progress
from .loop import Training as Training
from .loop import train as train
from .tasks import DigitsTask as DigitsTask
from .tasks import FolderTask as FolderTask
from .tasks import TrainingTask as TrainingTask
