"""Parts that know of frames: the segmenters, and what segments are used for."""

from .density_runs import DensityRuns as DensityRuns
from .frame_windows import FrameWindows as FrameWindows
from .scene_cuts import SceneCuts as SceneCuts
from .segmenter import Segmenter as Segmenter
from .static_windows import StaticWindows as StaticWindows
from .streaming_cuts import StreamingCuts as StreamingCuts
