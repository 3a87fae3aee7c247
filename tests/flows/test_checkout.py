"""The workspace of a worker: a clone that goes where the code is, and nowhere where somebody's work would be lost."""

from pathlib import Path

import pytest

from flows import checkout, git, workspace
from flows.workspace import taken
from tests.flows import toy


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy as the code that runs, with a workspace named but not there yet."""
    toy.make(tmp_path / "code")
    monkeypatch.setattr(checkout, "CODE", tmp_path / "code")
    monkeypatch.setattr(workspace, "CODE", tmp_path / "code")
    monkeypatch.setenv("BLSP_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "code"


def test_workspace_is_made_then_moves_with_the_code_and_what_runs_left_is_on_the_stash(code: Path) -> None:
    folder = code.parent / "workspace"
    with taken("a run", pytest.fail) as own:
        assert own and Path.cwd() == folder
    assert toy.git(folder, "rev-parse", "HEAD") == toy.git(code, "rev-parse", "HEAD")
    (code / "dvc.lock").write_text("{}")
    first = toy.commit(code, "Results")
    with taken("a run", pytest.fail):
        Path("dvc.lock").write_text("{} # a run's")
        Path("params.yaml").write_text("a: run's")
        Path("data").mkdir()
        Path("data/mine").write_text("nobody's business")
    (code / "stage.py").write_text("new")
    second = toy.commit(code, "New")
    with taken("a run", pytest.fail):
        assert toy.git(folder, "rev-parse", "HEAD") == second
        assert Path("stage.py").read_text() == "new"
        assert Path("dvc.lock").read_text() == "{}"
        assert Path("data/mine").exists()
        assert f"blsp: what runs left at {first[:12]}" in toy.git(folder, "stash", "list")


def test_what_runs_left_stays_while_the_commit_is_the_same(code: Path) -> None:
    (code / "dvc.lock").write_text("{}")
    toy.commit(code, "Results")
    for text in ("{}", "{} # a run's"):
        with taken("a run", pytest.fail):
            assert Path("dvc.lock").read_text() == text
            Path("dvc.lock").write_text("{} # a run's")


def test_changed_code_is_refused_by_name_there_and_here(code: Path) -> None:
    with taken("a run", pytest.fail):
        Path("stage.py").write_text("mine")
    refused = pytest.raises(
        ValueError, match=r"workspace: has changes that no commit has.*: stage\.py; commit or discard"
    )
    with refused, taken("a run", pytest.fail):
        pytest.fail("it ran")
    assert (code.parent / "workspace/stage.py").read_text() == "mine"
    (code / "params.yaml").write_text("mine")
    refused = pytest.raises(
        ValueError, match=r"code: has changes that no commit has.*: params\.yaml; commit or discard"
    )
    with refused, taken("a run", pytest.fail):
        pytest.fail("it ran")


def test_folder_of_something_else_is_refused(code: Path) -> None:
    (code.parent / "workspace").mkdir()
    (code.parent / "workspace/thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="to be the workspace it must be empty"), taken("a run", pytest.fail):
        pytest.fail("it ran")


def test_promotion_does_not_move_the_workspace_and_needs_one(code: Path) -> None:
    with pytest.raises(ValueError, match="nothing has run there yet"), taken("a", pytest.fail, runs_stages=False):
        pytest.fail("it ran")
    with taken("a run", pytest.fail):
        pass
    before = toy.git(code, "rev-parse", "HEAD")
    (code / "stage.py").write_text("new")
    toy.commit(code, "New")
    with taken("a promotion", pytest.fail, runs_stages=False) as own:
        assert own and toy.git(Path.cwd(), "rev-parse", "HEAD") == before


def test_committed_text_is_whole_to_its_last_line_break(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code)
    for text in ("a: 1", "a: 1\n", "a: 1\n\n"):
        Path("params.yaml").write_text(text)
        toy.commit(code, "Params")
        assert git.committed("params.yaml") == text
