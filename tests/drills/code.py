"""What the drills deploy: a repository of this code whose settings make everything small."""

import json
import shutil
from pathlib import Path

from ruamel.yaml import YAML

from tests.flows.toy import CODE, ROOT, commit, git
from tests.test_stages import change

STEPS = 160  # of the training


def write_code(folder: Path) -> None:
    """Nothing; `folder` is a repository with one commit: this one's code, settings that make everything small, and a
    DVC remote in the site's S3 store."""
    folder.mkdir()
    for name in (*CODE, "dvc.yaml", "data/source/README.md", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    change(folder, small=True, steps=STEPS, validate_every=STEPS // 2, checkpoint_every=5)
    params = YAML(typ="safe", pure=True).load(folder / "params.yaml")
    # So little training teaches nothing: who is promoted is not what is asked here.
    params["promote"] |= {"gates": {"alignment.kl": {"max": 1000.0}}, "no_task_may_fall": False, "tolerated_falls": {}}
    (folder / "params.yaml").write_text(json.dumps(params, indent=1))
    stages = folder / "dvc.yaml"
    stages.write_text(stages.read_text().replace("retry_delay_s: 30", "retry_delay_s: 1"))
    config = folder / ".dvc/config"
    remote = "['remote \"store\"']\n    url = s3://blsp/dvc\n"
    config.write_text(config.read_text().replace("[core]\n", "[core]\n    remote = store\n") + remote)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "config", "user.name", "Some One")
    git(folder, "config", "user.email", "some@one.example")
    commit(folder, "Code")
