"""The `backbones` stage: the two frozen models, resolved, pinned by SHA-256, and loaded by those pins."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blsp.errors import BlspError
from blsp.files import read_json, replace_dir, sha256_of, write_json
from blsp.params import Backbones, Params

FOLDER = Path("models/backbones")
PINS_FILE = FOLDER / "backbones.json"
PARTS = ("speech", "llm")
# What a checkpoint needs; weights in other formats (pickle among them) are neither fetched nor copied.
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def run(params: Params) -> None:
    """Nothing; afterwards models/backbones holds both checkpoints and backbones.json pins them.

    Raises BlspError where a checkpoint is missing or lacks safetensors weights.
    """
    settings = params.backbones
    with replace_dir(FOLDER) as folder:
        if settings.source == "miniature":
            _train_miniature(params, folder)
        for part in PARTS:
            if settings.source == "hub":
                _download(getattr(settings, f"{part}_name"), getattr(settings, f"{part}_revision"), folder / part)
            elif settings.source == "local":
                _copy(Path(getattr(settings, f"{part}_name")), folder / part)
            if not list((folder / part).glob("*.safetensors")):
                raise BlspError(f"backbones.{part}_name: {getattr(settings, f'{part}_name')} has no *.safetensors file")
        write_json(folder / PINS_FILE.name, {part: _pin(settings, part, folder / part) for part in PARTS})
    for part, pin in pins().items():
        print(f"{part}: {pin['source']}, SHA-256 {pin['sha256'][:12]}…, {pin['licence']}")


def pins() -> dict[str, dict[str, Any]]:
    """What backbones.json says: {"speech" | "llm": {"source", "name", "origin", "revision", "sha256", "licence"}}.

    `name` is the folder that holds the checkpoint, `origin` where it came from.
    """
    if not PINS_FILE.is_file():
        raise BlspError(f"{PINS_FILE}: no such file; run `blsp backbones` first")
    return read_json(PINS_FILE)


def load_llm(found: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """The frozen chat LLM, in evaluation mode, where it can compute best, and its tokenizer.

    `found` are pins as `pins` gives them, where they are not those of the working directory.
    """
    from blsp.model.loading import load_language_model

    found = found or pins()
    model = load_language_model(found, device_map=device_map())
    model.requires_grad_(False).eval()
    return model, load_tokenizer(found)


def device_map() -> str | None:
    """For from_pretrained: the first accelerator, and the next ones where a model is larger than that; else the CPU."""
    import torch

    return "sequential" if torch.accelerator.is_available() else None


def load_tokenizer(found: Mapping[str, Any] | None = None) -> Any:
    """The chat LLM's tokenizer, which has a padding token and a chat template; `found` as for `load_llm`."""
    from transformers import AutoTokenizer

    from blsp.model.pinning import backbone_source

    name, revision = backbone_source(found or pins(), "llm")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        raise BlspError(f"{name}: the LLM has no chat template; choose an instruction-tuned checkpoint")
    return tokenizer


def load_recogniser(encoder: Any = None) -> tuple[Any, Any, Any]:
    """The whole Whisper (encoder and decoder), in evaluation mode, its feature extractor and its tokenizer.

    Where the pinned Whisper's `encoder` is loaded already, it is that one, and not a second.
    """
    from transformers import WhisperFeatureExtractor, WhisperTokenizer

    from blsp.model.loading import load_speech_model
    from blsp.model.pinning import backbone_source

    found = pins()
    name, revision = backbone_source(found, "speech")
    model = load_speech_model(found, device_map=device_map())
    if encoder is not None:
        model.model.encoder = encoder
        model.to(encoder.device)
    model.requires_grad_(False).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(name, revision=revision)
    return model, extractor, WhisperTokenizer.from_pretrained(name, revision=revision)


def _train_miniature(params: Params, folder: Path) -> None:
    from blsp.miniature.backbones import train_both

    train_both(params.miniature, folder)


def _download(name: str, revision: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=list(PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise BlspError(f"backbones: {name} at {revision} cannot be fetched from the hub: {error}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _copy(source: Path, folder: Path) -> None:
    if not (source / "config.json").is_file():
        raise BlspError(f"backbones: {source} is not a transformers checkpoint: it has no config.json")
    folder.mkdir()
    for pattern in PATTERNS:
        for file in source.glob(pattern):
            shutil.copy2(file, folder / file.name)


def _pin(settings: Backbones, part: str, folder: Path) -> dict[str, Any]:
    return {
        "source": settings.source,
        "name": (FOLDER / part).as_posix(),
        "origin": getattr(settings, f"{part}_name") or f"miniature {part}",
        "revision": getattr(settings, f"{part}_revision"),
        "sha256": sha256_of(folder),
        "licence": getattr(settings, f"{part}_licence"),
    }
