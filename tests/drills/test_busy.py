"""Two runs and one workspace."""

from tests.drills.site import LIMIT_S, OTHER, Site, wait_until


def test_a_run_in_a_shell_ends_at_once_and_a_deployments_waits(here: Site) -> None:
    here.forget_training()
    first = here.start("training")
    training = here.frozen()
    before = here.contents("params.yaml", "dvc.lock")
    done = here.run_in(here.code, "flows.pipeline", "--set", *OTHER)
    assert done.returncode == 1
    name = here.read(first).name
    (busy,) = [run.state for run in here.newest_runs() if run.state and run.state.name == "WorkspaceBusy"]
    assert busy.is_failed() and (busy.message or "").startswith(f"{here.workspace}: pipeline run '{name}' has it (")
    assert here.contents("params.yaml", "dvc.lock") == before

    second = here.start("training")
    wait_until(lambda: here.read(second).state_name in ("Late", "AwaitingConcurrencySlot"), LIMIT_S)
    training.resume()
    assert here.completed(first).message == "1 of 6 stages ran, 5 skipped"
    assert here.completed(second).message == "0 of 6 stages ran, 6 skipped"
    here.check_training()
