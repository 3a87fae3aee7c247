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
# What a checkpoint needs beside its weights. Of these only the files that transformers reads are fetched or copied: no
# pickle, no copies in another format or precision (consolidated.safetensors, model.fp32-00001-of-00002.safetensors).
PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def run(params: Params) -> None:
    """Put both checkpoints into models/backbones, and pin them in backbones.json.

    Raises BlspError where a checkpoint is missing or lacks safetensors weights, or the LLM's chat template or tokenizer
    cannot take speech.
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
        found = {part: _pin(settings, part, folder / part) for part in PARTS}
        _check_prompts({**found["llm"], "name": str((folder / "llm").resolve())})
        write_json(folder / PINS_FILE.name, found)
    for part, pin in pins().items():
        print(f"{part}: {pin['source']}, SHA-256 {pin['sha256'][:12]}…, {pin['licence']}")


def pins() -> dict[str, dict[str, Any]]:
    """What backbones.json says: {"speech" | "llm": {"source", "name", "origin", "revision", "sha256", "licence"}}.

    `name` is the folder that holds the checkpoint, `origin` where it came from. The LLM's pin also has what its chat
    template is given: "chat_template_kwargs" and "chat_template_date".
    """
    if not PINS_FILE.is_file():
        raise BlspError(f"{PINS_FILE}: no such file; run `blsp backbones` first")
    return read_json(PINS_FILE)


def load_llm(found: Mapping[str, Any] | None = None, precision: str | None = None) -> tuple[Any, Any]:
    """The frozen chat LLM, in evaluation mode, where it can compute best, and its tokenizer.

    `found` are pins as `pins` gives them, where they are not those of the working directory. `precision` is float32 or
    bfloat16; None: what the checkpoint is stored in.
    """
    from blsp.model.loading import load_language_model

    found = found or pins()
    model = load_language_model(found, precision, device_map())
    model.requires_grad_(False).eval()
    return model, load_tokenizer(found)


def device_map() -> str | None:
    """For from_pretrained: the first accelerator, and the next ones where a model is larger than that; else the CPU."""
    import torch

    return "sequential" if torch.accelerator.is_available() else None


def load_tokenizer(found: Mapping[str, Any] | None = None) -> Any:
    """The chat LLM's tokenizer, which has a padding token and its pinned chat template; `found` as for `load_llm`."""
    from blsp.model import chat_template

    tokenizer = chat_template.load_tokenizer(found or pins())
    if tokenizer.chat_template is None:
        raise BlspError(
            f"{tokenizer.name_or_path}: the LLM has no chat template; choose an instruction-tuned checkpoint"
        )
    return tokenizer


def load_recogniser(precision: str | None = None) -> tuple[Any, Any, Any]:
    """The whole Whisper (encoder and decoder), in evaluation mode, its feature extractor and its tokenizer.

    `precision` as for `load_llm`.
    """
    from transformers import WhisperFeatureExtractor, WhisperTokenizer

    from blsp.model.loading import load_speech_model
    from blsp.model.pinning import backbone_source

    found = pins()
    name, revision = backbone_source(found, "speech")
    model = load_speech_model(found, precision, device_map())
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
        snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=_weight_files(folder))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise BlspError(f"backbones: {name} at {revision} cannot be fetched from the hub: {error}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    _check_whole(name, folder)


def _copy(source: Path, folder: Path) -> None:
    if not (source / "config.json").is_file():
        raise BlspError(f"backbones: {source} is not a transformers checkpoint: it has no config.json")
    folder.mkdir()
    for pattern in (*PATTERNS, *_weight_files(source)):
        for file in source.glob(pattern):
            shutil.copy2(file, folder / file.name)
    _check_whole(str(source), folder)


def _weight_files(folder: Path) -> list[str]:
    """The names of the weights that transformers reads: one file, or the shards that the index names."""
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    return sorted({Path(name).name for name in read_json(folder / INDEX)["weight_map"].values()})


def _check_whole(name: str, folder: Path) -> None:
    """Raise BlspError where a shard of the weights is missing. A checkpoint without any is told of elsewhere."""
    missing = [file for file in _weight_files(folder) if not (folder / file).is_file()]
    if missing and (folder / INDEX).is_file():
        raise BlspError(f"backbones: {name} lacks {missing[0]}, which its {INDEX} names; fetch it again")
    for file in folder.glob("*.index*.json"):  # of copies that were left behind
        if file.name != INDEX:
            file.unlink()


def _check_prompts(pin: Mapping[str, Any]) -> None:
    from blsp.model.chat_template import load_spoken_tokenizer

    load_spoken_tokenizer({"llm": pin})


def _pin(settings: Backbones, part: str, folder: Path) -> dict[str, Any]:
    own = {"chat_template_kwargs": settings.chat_template_kwargs, "chat_template_date": settings.chat_template_date}
    return {
        "source": settings.source,
        "name": (FOLDER / part).as_posix(),
        "origin": getattr(settings, f"{part}_name") or f"miniature {part}",
        "revision": getattr(settings, f"{part}_revision"),
        "sha256": sha256_of(folder),
        "licence": getattr(settings, f"{part}_licence"),
        **(own if part == "llm" else {}),
    }
