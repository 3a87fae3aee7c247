"""The model file that MLflow runs when it serves an adapter: audio in, text out. No pickle anywhere."""

from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from blsp.errors import BlspError
from blsp.serving.speech import SpeechChat


class BlspPyfunc(PythonModel):
    """Answers one instruction about each recording of a request."""

    def load_context(self, context: Any) -> None:
        self.chat = SpeechChat.load(context.artifacts["adapter"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        settings = {**context.model_config, **{k: v for k, v in (params or {}).items() if v is not None}}
        try:
            return self.chat.answer(list(model_input["audio"]), **settings)
        except BlspError as error:  # without this, callers get a stack trace in place of the reason
            raise MlflowException.invalid_parameter_value(str(error)) from error


set_model(BlspPyfunc())
