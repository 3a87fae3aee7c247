"""The registered adapter, served by `mlflow models serve` in a process of its own and asked over HTTP."""

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from blsp.data.audio import decode, resample
from blsp.model.chat import respond
from blsp.registry import promote
from blsp.serving.speech import RequestError, SpeechChat, read_recording
from blsp.tracking.store import MODEL_TAG, session
from tests import tiny
from tests.servers import free_port
from tests.trained import Trained

INSTRUCTION = "Repeat the following text."


def recording(seconds: float, rate_hz: int = 16_000, channels: int = 1, kind: str = "WAV") -> bytes:
    """A file of noise in memory."""
    samples = np.random.default_rng(1).normal(0, 0.1, (int(seconds * rate_hz), channels))
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format=kind)
    return stream.getvalue()


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def adapter(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A tiny random model whose adapter is the working directory's."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the server's
    pins = tiny.save_backbones(Path("models/backbones"))
    Path("models/backbones/backbones.json").write_text(json.dumps(pins))
    model, processor = tiny.build(pins)
    model.save_pretrained("models/adapter")
    trained.write_evaluation()
    return model, processor


@contextlib.contextmanager
def served(model_uri: str, log: Path) -> Iterator[str]:
    """The address of `mlflow models serve`, which looks for its own programs on the PATH."""
    port = free_port()
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    command = [f"{programs}/mlflow", "models", "serve", "--model-uri", model_uri, "--env-manager", "local"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + 180
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def ask(address: str, request: dict[str, Any]) -> tuple[int, Any]:
    """The status and the JSON that a server gives."""
    headers = {"Content-Type": "application/json"}
    try:
        posted = urllib.request.Request(address, json.dumps(request).encode(), headers)
        with urllib.request.urlopen(posted, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.usefixtures("unasked")
def test_the_champion_answers_over_http(trained: Trained, adapter: tuple[Any, Any], tmp_path: Path) -> None:
    promote(trained.params)
    name = trained.params.promote.model_name
    with session() as store:
        version = store.client.get_model_version_by_alias(name, "champion")
        folder = Path(store.client.get_logged_model(version.tags[MODEL_TAG]).artifact_location.removeprefix("file://"))
    kept = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert "artifacts/adapter/model.safetensors" in kept
    assert "code/blsp/model/modeling.py" in kept
    assert not [path for path in kept if path.endswith((".pkl", ".pickle", ".pt", ".bin")) or "/llm/" in path]

    files = [recording(0.5), recording(0.7, rate_hz=8_000, channels=2), recording(2.6, kind="FLAC")]
    clips = [resample(*decode(content), 16_000) for content in files]
    frame = {"columns": ["audio"], "data": [[encode(content)] for content in files]}
    with served(f"models:/{name}@champion", tmp_path / "server.log") as address:
        status, answer = ask(address, {"dataframe_split": frame})
        assert status == 200, answer
        assert answer == {"predictions": respond(*adapter, INSTRUCTION, clips, 64)}
        assert any(answer["predictions"])

        params: dict[str, Any] = {
            "instruction": "Name the intent of the following text.",
            "max_new_tokens": 3,
        }
        status, answer = ask(address, {"dataframe_split": frame, "params": params})
        assert answer == {"predictions": respond(*adapter, params["instruction"], clips, 3)}

        example = json.loads((folder / "serving_input_example.json").read_text())
        assert ask(address, example)[0] == 200

        refused: list[tuple[dict[str, Any], str]] = [
            ({"dataframe_split": {"columns": ["sound"], "data": [["x"]]}}, "missing inputs ['audio']"),
            (
                {"dataframe_split": {"columns": ["audio"], "data": [["not base64!"]]}},
                "row 0: audio is not base64",
            ),
            ({"dataframe_split": frame, "params": {"max_new_tokens": 0}}, "max_new_tokens is 0"),
            ({"dataframe_split": frame, "params": {"max_new_tokens": "many"}}, "max_new_tokens"),
        ]
        for request, message in refused:
            status, answer = ask(address, request)
            assert status == 400
            assert message in answer["message"]
            assert "stack_trace" not in answer


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("äöü", "row 4: audio is not base64"),
        (encode(b"RIFF, but no more"), "row 4: .*17 bytes.*send base64 of a wav or flac file"),
        (encode(recording(0.0)), "row 4: .*no samples"),
        (None, "row 4: audio is not base64"),
    ],
)
def test_a_bad_recording_is_refused_with_its_row(encoded: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_recording(encoded, 4)


def test_an_empty_instruction_is_refused() -> None:
    with pytest.raises(RequestError, match="instruction is empty"):
        SpeechChat(None, None).answer([], " ", 3)
