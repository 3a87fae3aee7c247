"""What a saved adapter says of itself: its shape, its placeholder, and the backbones it is pinned to."""

from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import AutoConfig, PreTrainedConfig

from blsp.errors import BlspError
from blsp.model.chat import AUDIO_TOKEN


class BlspConfig(PreTrainedConfig):
    """Configuration of a frozen Whisper encoder, a trained modality adapter and a frozen causal LLM.

    `adapter` is conv (the paper's), word (its vectors at the pace of words) or stack, `downsampling` the encoder frames
    a speech vector, `bottleneck` the adapter's inner width. `encoding` is variable (windows as long as their audio) or
    padded (each padded to the encoder's whole window, which the encoder attends to).
    `precision` is what the frozen backbones compute in, float32 or bfloat16; None: what they are stored in.
    `backbones` pins both parts: {"speech" | "llm": {"source", "name", "origin", "revision", "sha256",
    "licence"}}, of the LLM also "chat_template_kwargs" and "chat_template_date"; with it a checkpoint holds the adapter
    alone, without it (None) the whole model.
    """

    model_type = "blsp"
    sub_configs: ClassVar[dict[str, Any]] = {"audio_config": AutoConfig, "text_config": AutoConfig}
    has_no_defaults_at_init = True

    audio_config: Any = None
    text_config: Any = None
    audio_token: str = AUDIO_TOKEN
    audio_token_id: int = -1
    adapter: str = "conv"
    downsampling: int = 8
    conv_kernel: int = 5
    bottleneck: int = 512
    encoding: str = "variable"
    precision: str | None = None
    backbones: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("audio_config", "text_config"):
            part = getattr(self, name)
            if isinstance(part, dict):
                setattr(self, name, AutoConfig.for_model(**part))
        super().__post_init__(**kwargs)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """The configuration of a saved adapter or an exported model; of one on the hub, where no folder can be meant.

        Raises BlspError where a folder is meant and holds none: the hub is not asked for the name of a local folder.
        """
        path = Path(folder)
        is_local = isinstance(folder, Path) or path.is_absolute() or path.exists() or len(path.parts) != 2
        if (is_local or path.parent.exists()) and not (path / "config.json").is_file():
            raise BlspError(f"{folder}: no adapter there; `blsp train` writes one")
        return cls.from_pretrained(folder)
