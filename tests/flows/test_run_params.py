"""A run's own values: in params.yaml while it runs and where it completes, gone without a trace where it does not."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from blsp.params import with_overrides
from flows.run_params import SET_ASIDE, in_place, put_back
from flows.workspace import WorkspaceBusy, held, taken
from tests.flows import toy


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "project"
    toy.make(folder)
    toy.repro(folder)
    toy.commit(folder, "Results")
    return folder


@pytest.fixture
def project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The toy after its first run, as the working folder."""
    shutil.copytree(built, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("BLSP_WORKSPACE", raising=False)
    yield tmp_path / "project"


def changed(*overrides: str) -> str:
    return with_overrides(Path("params.yaml").read_text(), None, overrides)


def test_completed_run_leaves_its_values_and_a_lock_that_belongs_to_them(project: Path) -> None:
    with in_place(changed("train.lr=1e-4"), "a run", pytest.fail) as keep:
        toy.repro(project)
        keep()
    assert toy.value(project, "train", "lr") == 1e-4
    assert Path("train.txt").read_text() == "0.0001"
    assert toy.stale(project) == {}
    put_back(pytest.fail)  # there is nothing to put back


def test_run_that_does_not_complete_leaves_all_as_it_was_outputs_too(project: Path) -> None:
    before, said = toy.contents(project), []
    with pytest.raises(KeyboardInterrupt), in_place(changed("corpus.shard_size=7"), "run 'fox'", said.append):
        toy.repro(project)
        assert Path("corpus.txt").read_text() == "7"
        raise KeyboardInterrupt
    assert toy.contents(project) == before
    assert toy.stale(project) == {}
    assert toy.git(project, "status", "--porcelain") == ""
    assert said == ["run 'fox' did not complete: params.yaml and dvc.lock are as they were before it"]


def test_what_a_killed_run_left_is_put_back_by_whoever_takes_the_workspace_next(project: Path) -> None:
    before, said = toy.contents(project), []
    child = os.fork()
    if child == 0:
        with in_place(changed("train.lr=1e-4"), "run 'fox'", print):
            toy.repro(project)
            os._exit(9)  # as a kill: nothing is cleaned up
    os.waitpid(child, 0)
    assert toy.value(project, "train", "lr") == 1e-4
    with taken("the next", said.append):
        assert toy.contents(project) == before
    assert len(said) == 1 and said[0].startswith("run 'fox' did not complete")


def test_params_that_somebody_changed_since_are_left_alone(project: Path) -> None:
    said: list[str] = []
    with in_place(changed("train.lr=1e-4"), "run 'fox'", said.append):
        mine = changed("train.lr=5e-4")
        Path("params.yaml").write_text(mine)
    assert Path("params.yaml").read_text() == mine
    assert "was changed since run 'fox'" in said[0] and str(SET_ASIDE) in said[0]
    assert SET_ASIDE.is_dir()


def test_a_second_run_learns_who_has_the_workspace_and_a_third_may_have_it(project: Path) -> None:
    refused = pytest.raises(WorkspaceBusy, match=r"project: pipeline run 'fox' has it \(process \d+ on .*, since .*\)")
    with held(project, "pipeline run 'fox'"), refused, held(project, "another"):
        pytest.fail("two had it")
    with held(project, "another"):
        pass


def test_a_deployment_without_a_workspace_is_refused(project: Path) -> None:
    with pytest.raises(ValueError, match="BLSP_WORKSPACE is not set: .* Set BLSP_WORKSPACE"), taken("a", print, True):
        pytest.fail("it ran in a temporary folder")
