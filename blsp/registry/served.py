"""`python -P served.py REQUEST REPLY`: a registered model's answers, as a server of that model would give them.

It runs in a process of its own and imports nothing of this project, so that what answers is the code and the weights
that were logged with the model. REQUEST is JSON: {"model": URI, "questions": [{"audio", "instruction",
"max_new_tokens"}]}; REPLY becomes {"answers": [...], "code": the file of the package that answered}.
"""

import json
import sys
from pathlib import Path


def main(request: str, reply: str) -> None:
    import mlflow
    import pandas as pd

    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    model = mlflow.pyfunc.load_model(asked["model"])
    answers = []
    for question in asked["questions"]:
        audio = pd.DataFrame({"audio": [question.pop("audio")]})
        answers += list(model.predict(audio, params=question))
    code = getattr(sys.modules.get("blsp"), "__file__", None)
    Path(reply).write_text(json.dumps({"answers": answers, "code": code}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
