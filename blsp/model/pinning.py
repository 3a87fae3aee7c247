"""Backbones by name, revision and SHA-256: an adapter works with the very models it was trained on, or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blsp.errors import BlspError
from blsp.files import sha256_of

BACKBONES_DIR_VARIABLE = "BLSP_BACKBONES_DIR"


def backbone_source(pins: Mapping[str, Any], part: str) -> tuple[str, str | None]:
    """The folder of one backbone ("speech" or "llm") and None; or its name on the hub and its commit there.

    A relative folder is looked for in the working directory, or in BLSP_BACKBONES_DIR where that is set. Where there
    is none, a backbone that came from the hub comes from there again, at the pinned commit.
    Raises BlspError where the pins name no such backbone, or the folder of any other is missing.
    """
    pin = pins.get(part)
    if not pin:
        raise BlspError(f"the adapter's config.json pins no {part} backbone; train it again with `blsp train`")
    folder = Path(pin["name"])
    base = os.environ.get(BACKBONES_DIR_VARIABLE)
    if base and not folder.is_absolute():
        folder = Path(base) / folder.name
    if folder.is_dir():
        return str(folder), None
    if pin["source"] == "hub":
        return pin["origin"], pin["revision"]
    raise BlspError(
        f"the adapter's {part} backbone {pin['name']} is not at {folder}; run `blsp backbones` there, "
        f"or set {BACKBONES_DIR_VARIABLE} to the folder that holds it"
    )


def check_backbone(pins: Mapping[str, Any], part: str) -> None:
    """Nothing; raises BlspError where a backbone's folder is not, byte for byte, the one that was pinned."""
    source, revision = backbone_source(pins, part)
    if revision is not None:
        return  # a hub revision is a commit: it names its own contents
    pin = pins[part]
    found = sha256_of(source)
    if found != pin["sha256"]:
        raise BlspError(
            f"the adapter was trained with the {part} backbone {pin['name']} of SHA-256 {pin['sha256'][:12]}…, "
            f"but {source} has {found[:12]}…; bring the pinned backbone back or train the adapter again"
        )
