"""Pages to read and to listen to: each is one HTML file that fetches nothing and runs nothing."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsp.data.audio import resample
from blsp.files import write_text

AUDIO_HZ = 16_000


def write_page(path: str | Path, package: str, template: str, contents: Mapping[str, Any]) -> None:
    """Nothing; `path` holds what the template of this package makes of the contents.

    Templates lie in `templates` of the package; those of `blsp` itself may be built upon.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, "templates") for name in (package, "blsp")]),
        autoescape=True,  # transcripts are anybody's text, and so is what an LLM writes
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    write_text(path, environment.get_template(template).render(contents))


def audio_address(samples: NDArray[np.float32], rate_hz: int) -> str:
    """The samples (N,) as an address that holds them itself, as MP3, which every browser plays.

    A quarter of the FLAC's size, the same bytes each time.
    """
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, resample(samples, rate_hz, AUDIO_HZ), AUDIO_HZ, format="MP3")
    return f"data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
