"""The adapter as an MLflow model: code, weights and the names of its backbones, never copies of them."""

import base64
import io
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blsp.params import Params
from blsp.serving.speech import SAMPLING_RATE_HZ
from blsp.tracking.local import ADAPTER, LocalRun

if TYPE_CHECKING:
    from blsp.tracking.store import Store

PACKAGE = Path(__file__).parents[1]
MODEL_CODE = Path(__file__).with_name("pyfunc.py")
REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "scipy", "soundfile", "torch", "transformers")


def log_model(opened: "Store", run_id: str, local: LocalRun, params: Params) -> str:
    """The id of a new logged model of the run, ready to be served by `mlflow models serve -m models:/ID`.

    `mlflow.pyfunc.log_model` does the same steps and one more: it loads the model to try the example, which
    for a 7B LLM is minutes and a second copy on the GPU. tests/serving tries a real server instead.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = opened.client
    model = client.create_logged_model(
        opened.experiment_id,
        name="model",
        source_run_id=run_id,
        params=local.params,
        model_type="speech-chat",
    )
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    with tempfile.TemporaryDirectory() as folder:
        record = mlflow.models.Model(
            artifact_path=model.artifact_location,
            run_id=run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        )
        save_model(Path(folder) / "model", ADAPTER, params, record)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def save_model(path: Path, adapter: Path, params: Params, record: Any = None) -> None:
    """Nothing; afterwards `path` is an MLflow model folder with the adapter and this package's code in it.

    `record` is MLflow's `Model` to fill where the folder belongs to a run.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    instruction = next(iter(params.evaluate.tasks.values())).instructions[0]
    defaults = {"instruction": instruction, "max_new_tokens": params.evaluate.max_new_tokens}
    mlflow.pyfunc.save_model(
        path,
        python_model=str(MODEL_CODE),
        # A registered model is served by the code it was made with, whatever is installed by then.
        code_paths=[str(PACKAGE)],
        artifacts={"adapter": str(adapter.resolve())},
        model_config=defaults,
        signature=ModelSignature(
            inputs=Schema([ColSpec("string", "audio")]),
            outputs=Schema([ColSpec("string")]),
            params=ParamSchema([ParamSpec("instruction", "string", None), ParamSpec("max_new_tokens", "long", None)]),
        ),
        input_example=(pd.DataFrame({"audio": [example_audio()]}), defaults),
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        mlflow_model=record,
    )


def example_audio() -> str:
    """Base64 of a FLAC file, 0.25 s of a quiet tone: what a request's `audio` looks like."""
    import soundfile

    seconds = np.arange(SAMPLING_RATE_HZ // 4) / SAMPLING_RATE_HZ
    stream = io.BytesIO()
    soundfile.write(stream, 0.1 * np.sin(2 * np.pi * 440 * seconds), SAMPLING_RATE_HZ, format="FLAC")
    return base64.b64encode(stream.getvalue()).decode()
