"""One folder with everything in it, for servers: weights, configuration, tokenizer, feature extractor, template."""

from pathlib import Path

import torch

from blsp.errors import BlspError
from blsp.files import replace_dir
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.model.processing import BlspProcessor


def export(adapter: str | Path, folder: str | Path, dtype: str | None = None, max_shard_size: str = "5GB") -> None:
    """Write the encoder, the adapter in the folder `adapter`, and the LLM into `folder`, whole.

    After `import blsp.model`, AutoModelForMultimodalLM.from_pretrained(folder) and AutoProcessor load it, wherever
    it is moved: it names no other folder. AutoModel gives it without the LLM's head, as vLLM wants it. All weights
    are written in `dtype` (such as "bfloat16"; None: what the LLM computed in while the adapter was trained).
    Raises BlspError where `folder` is there already, or the adapter or a backbone cannot be loaded.
    """
    if Path(folder).exists():
        raise BlspError(f"{folder}: is there already; remove it, or name another folder")
    model = BlspForConditionalGeneration.from_pretrained(Path(adapter))
    processor = BlspProcessor.from_pretrained(Path(adapter))
    model.to(getattr(torch, dtype) if dtype else model.language_model.dtype)
    config = model.config
    config.precision = config.backbones = None  # a configuration without pins is one of a whole model
    for part in (config, config.audio_config, config.text_config):
        part.name_or_path = ""
    with replace_dir(folder) as temporary:
        model.save_pretrained(temporary, max_shard_size=max_shard_size)
        processor.save_pretrained(temporary)
