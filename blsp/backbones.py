"""The `backbones` stage: the two frozen models, resolved, pinned by SHA-256, and loaded by those pins."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blsp.errors import BlspError
from blsp.files import read_json, replace_dir, scratch_folder, sha256_of, write_json
from blsp.params import Backbones, Params, load_params

FOLDER = Path("models/backbones")
PINS_FILE = FOLDER / "backbones.json"
PARTS = ("speech", "llm")


def run(params: Params) -> None:
    """Write both checkpoints into models/backbones, and backbones.json, which pins them.

    Raises BlspError where a checkpoint is missing, not the pinned one, or lacks safetensors weights, or the LLM's chat
    template or tokenizer cannot take speech.
    """
    from blsp.wheels import unpacked

    settings = params.backbones
    with replace_dir(FOLDER) as folder:
        if settings.source == "miniature":
            _train_miniature(params, folder)
        for part in PARTS:
            name, target = getattr(settings, f"{part}_name"), folder / part
            if settings.source == "hub":
                _download(name, getattr(settings, f"{part}_revision"), target)
            elif settings.source == "local":
                _check_pinned(settings, part)
                _write(Path(name), part, target)
            elif settings.source == "package":
                with unpacked(getattr(settings, f"{part}_wheels")) as contents:
                    if not (contents / name).exists():
                        raise BlspError(f"backbones.{part}_name: {name} is not in the wheels{_weights_in(contents)}")
                    _write(contents / name, part, target)
            if not list(target.glob("*.safetensors")):
                raise BlspError(f"backbones.{part}_name: {name} has no *.safetensors file")
        found = {part: _pin(settings, part, folder / part) for part in PARTS}
        _check_prompts({**found["llm"], "name": str((folder / "llm").resolve())})
        write_json(folder / PINS_FILE.name, found)
    for part, pin in pins().items():
        print(f"{part}: {pin['source']}, SHA-256 {pin['sha256'][:12]}…, {pin['licence']}")
        if settings.source == "local" and getattr(settings, f"{part}_sha256") is None:
            print(f"{part}: to pin {pin['origin']} as it is now, set backbones.{part}_sha256: {pin['source_sha256']}")


def pins() -> dict[str, dict[str, Any]]:
    """What backbones.json says: {"speech" | "llm": {"source", "name", "origin", "revision", "sha256", "licence"}}.

    `name` is the folder that holds the checkpoint, `origin` where it came from. One of `local` has "source_sha256"
    too, of the files it was made from; one of `package` has "wheels", as params.yaml has them.
    The LLM's pin also has what its chat template is given: "chat_template_kwargs" and
    "chat_template_date".
    Raises BlspError where there are none yet, or what they were made from has changed on this disk since.
    """
    if not PINS_FILE.is_file():
        raise BlspError(f"{PINS_FILE}: no such file; run `blsp backbones` first")
    found = read_json(PINS_FILE)
    for part, pin in found.items():
        _check_unchanged(part, pin)
    return found


def check_sources() -> None:
    """Raise BlspError as `pins` does, for a run in which no stage may run that asks for the pins.

    Where params.yaml already names other backbones, or another SHA-256, DVC makes models/backbones anew anyway.
    """
    found = read_json(PINS_FILE) if PINS_FILE.is_file() else {}
    local = {part: pin for part, pin in found.items() if pin["source"] == "local"}
    if not local:
        return
    settings = load_params().backbones
    for part, pin in local.items():
        same = settings.source == "local" and getattr(settings, f"{part}_name") == pin["origin"]
        if same and getattr(settings, f"{part}_sha256") in (None, pin.get("source_sha256")):
            _check_unchanged(part, pin)


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


def load_recogniser(encoder: Any = None) -> tuple[Any, Any, Any]:
    """The whole Whisper (encoder and decoder), in evaluation mode, its feature extractor and its tokenizer.

    Where the pinned Whisper's `encoder` is loaded already, it is that one, and not a second, and the
    decoder computes in its precision.
    """
    from transformers import WhisperFeatureExtractor, WhisperTokenizer

    from blsp.model.loading import load_speech_model
    from blsp.model.pinning import backbone_source

    found = pins()
    name, revision = backbone_source(found, "speech")
    model = load_speech_model(found, None if encoder is None else encoder.dtype, device_map())
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

    from blsp.formats import INDEX, PATTERNS, TEMPLATES, WEIGHTS, is_index, shards_of

    where: dict[str, Any] = {"revision": revision, "local_dir": folder}
    try:
        # A pattern's * takes slashes too: other formats and precisions lie in folders.
        snapshot_download(name, **where, allow_patterns=[*PATTERNS, WEIGHTS], ignore_patterns=["*/*"])
        wanted = [f"{TEMPLATES}/*.jinja"]
        for file in folder.glob("*.json"):
            if is_index(file.name) and (file.name != INDEX or (folder / WEIGHTS).is_file()):
                file.unlink()
        if (folder / INDEX).is_file():
            wanted += shards_of(folder / INDEX)
        snapshot_download(name, **where, allow_patterns=wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise BlspError(f"backbones: {name} at {revision} cannot be fetched from the hub: {error}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _write(source: Path, part: str, folder: Path) -> None:
    from blsp.formats import write_checkpoint

    try:
        write_checkpoint(source, part, folder)
    except BlspError as error:
        raise BlspError(f"backbones.{part}_name: {error}") from error


def _weights_in(contents: Path) -> str:
    """What of an unpacked wheel may be meant: its GGUF files and the folders with a configuration."""
    there = [*contents.rglob("*.gguf"), *(file.parent for file in contents.rglob("config.json"))]
    return f"; they hold {', '.join(sorted(str(path.relative_to(contents)) for path in there)) or 'no weights'}"


def _check_pinned(settings: Backbones, part: str) -> None:
    """Raise BlspError where a local checkpoint is not the one that params.yaml pins."""
    pinned, source = getattr(settings, f"{part}_sha256"), Path(getattr(settings, f"{part}_name"))
    if pinned is not None and (found := _source_sha256(source)) != pinned:
        raise BlspError(f"backbones.{part}_sha256 is {pinned}, but {source} has {found}; is it the one that is meant?")


def _check_unchanged(part: str, pin: Mapping[str, Any]) -> None:
    """Raise BlspError where a local checkpoint, still on this disk, is no longer what models/backbones was made from.

    DVC does not look outside the workspace: it takes the stage for up to date, and its run cache would even bring the
    old copy back. A new value in params.yaml is what it does see.
    """
    if pin["source"] != "local" or "source_sha256" not in pin:
        return
    source = Path(pin["origin"])
    if not source.exists():
        return
    if (found := _source_sha256(source)) != pin["source_sha256"]:
        raise BlspError(
            f"{source} is no longer what {pin['name']} was made from (SHA-256 {pin['source_sha256'][:12]}…, now "
            f"{found[:12]}…). To work with what is there now, set backbones.{part}_sha256: {found} in params.yaml and "
            "run the pipeline; otherwise bring the old files back"
        )


def _source_sha256(source: Path) -> str:
    """The SHA-256 of a local checkpoint, kept in the scratch folder until one of its files is touched."""
    from blsp.formats import files_of, sha256_of_checkpoint

    stats = [(file.name, file.stat()) for file in files_of(source)]
    stamp = [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()
    memo = scratch_folder() / "sources" / f"{place}.json"
    try:
        kept = read_json(memo)
        if kept["stamp"] == stamp:
            return kept["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        pass  # none yet, or damaged: it is only kept to save time
    found = sha256_of_checkpoint(source)
    write_json(memo, {"stamp": stamp, "sha256": found})
    return found


def _check_prompts(pin: Mapping[str, Any]) -> None:
    from blsp.model.chat_template import load_spoken_tokenizer

    load_spoken_tokenizer({"llm": pin})


def _pin(settings: Backbones, part: str, folder: Path) -> dict[str, Any]:
    own = {"chat_template_kwargs": settings.chat_template_kwargs, "chat_template_date": settings.chat_template_date}
    pin = {
        "source": settings.source,
        "name": (FOLDER / part).as_posix(),
        "origin": getattr(settings, f"{part}_name") or f"miniature {part}",
        "revision": getattr(settings, f"{part}_revision"),
        "sha256": sha256_of(folder),
        "licence": getattr(settings, f"{part}_licence"),
        **(own if part == "llm" else {}),
    }
    if settings.source == "local":
        pin["source_sha256"] = _source_sha256(Path(pin["origin"]))
    if settings.source == "package":
        pin["wheels"] = [wheel.model_dump() for wheel in getattr(settings, f"{part}_wheels")]
    return pin
