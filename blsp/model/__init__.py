"""The speech-language model in transformers' layout: configuration, processor, model.

Importing this package registers the three with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoProcessor

from blsp.model.configuration import BlspConfig
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.model.processing import BlspProcessor

AutoConfig.register("blsp", BlspConfig)
AutoModelForMultimodalLM.register(BlspConfig, BlspForConditionalGeneration)
AutoModelForSeq2SeqLM.register(BlspConfig, BlspForConditionalGeneration)
AutoProcessor.register(BlspConfig, BlspProcessor)

__all__ = ["BlspConfig", "BlspForConditionalGeneration", "BlspProcessor"]
