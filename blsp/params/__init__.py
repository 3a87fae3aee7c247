"""params.yaml as frozen, typed records."""

from blsp.params.evaluation import Condition, Evaluate, Judge, Task
from blsp.params.loading import PARAMS_FILE, ParamsError, load_params, read_params
from blsp.params.overrides import with_overrides
from blsp.params.sections import (
    AnswerQuality,
    Backbones,
    Behaviour,
    Continuations,
    Corpus,
    Execution,
    Gate,
    Miniature,
    MiniatureLlm,
    MiniatureSpeech,
    Params,
    Source,
    Wheel,
)
from blsp.params.training import Train

__all__ = [
    "PARAMS_FILE",
    "AnswerQuality",
    "Backbones",
    "Behaviour",
    "Condition",
    "Continuations",
    "Corpus",
    "Evaluate",
    "Execution",
    "Gate",
    "Judge",
    "Miniature",
    "MiniatureLlm",
    "MiniatureSpeech",
    "Params",
    "ParamsError",
    "Source",
    "Task",
    "Train",
    "Wheel",
    "load_params",
    "read_params",
    "with_overrides",
]
