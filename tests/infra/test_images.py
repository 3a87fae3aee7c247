"""The images' recipes: what their own linter says, what goes into them, who runs in them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "infra/images").glob("*.Dockerfile"))


def test_hadolint_finds_nothing():
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", *RECIPES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert len(RECIPES) == 2 and done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_base_and_packages_are_pinned_and_nobody_is_root(recipe):
    text = recipe.read_text()
    assert re.search(r"^FROM \S+:\d+\.\d+\.\d+-\S+$", text, re.MULTILINE), "a whole version"
    assert "--constraint constraints.txt" in text
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] == "1000:1000"
    assert not re.search(r"(ARG|ENV)\s.*(PASSWORD|SECRET|TOKEN|KEY)", text)


def test_the_services_image_needs_no_more_than_it_has(tmp_path):
    """The commands run where nothing else of the project is."""
    patterns = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for pattern in patterns:
        for path in ROOT.glob(pattern):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, target)
    copied = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert "infra/mlflow/basic_auth.ini" in copied and not [path for path in copied if ".env" in path]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for module in ("backup", "restore", "provision"):
        command = [sys.executable, "-m", f"infra.{module}", "--help"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
