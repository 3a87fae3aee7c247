"""The speech-language model in transformers' layout: configuration, processor, model.

Importing this package registers them with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoProcessor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from blsp.model.configuration import BlspConfig
from blsp.model.headless import WITHOUT_HEAD, BlspModel
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.model.processing import BlspProcessor


def register() -> None:
    """Nothing; transformers' Auto classes afterwards know blsp. vLLM asks a plug-in for such a function."""
    AutoConfig.register("blsp", BlspConfig, exist_ok=True)
    AutoModel.register(BlspConfig, BlspModel, exist_ok=True)
    AutoModelForMultimodalLM.register(BlspConfig, BlspForConditionalGeneration, exist_ok=True)
    AutoModelForSeq2SeqLM.register(BlspConfig, BlspForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(BlspConfig, BlspProcessor, exist_ok=True)
    register_checkpoint_conversion_mapping(BlspModel.__name__, [WITHOUT_HEAD], overwrite=True)


register()

__all__ = ["BlspConfig", "BlspForConditionalGeneration", "BlspModel", "BlspProcessor", "register"]
