"""What is killed in the midst of its work, and what the next run makes of it. The tests go on from each other."""

from tests.drills.site import LIMIT_S, OTHER, Site, wait_until

TO_CANCEL = ["train.lr=5e-4"]


def test_promotion_killed_before_the_aliases_move(here: Site) -> None:
    """kill -9 while the new version is asked its test questions."""
    here.forget_training()
    here.completed(here.start("evaluation", OTHER))
    assert here.adapter() != here.undisturbed
    before, versions = here.aliases(), here.versions()
    killed = here.start("promote")
    wait_until(here.asking, LIMIT_S)
    asking = here.asking()
    assert asking is not None
    asking.parent().kill()
    state = here.ended(killed)
    assert state.is_crashed() and "SIGKILL" in (state.message or ""), state.message
    wait_until(lambda: not here.asking(), LIMIT_S)
    assert len(here.versions()) == len(versions) + 1 and here.aliases() == before

    here.pass_time("blsp.lock", 180)
    assert here.completed(here.start("promote")).message == "blsp version 2 is champion now, after version 1"
    assert here.aliases() == {"champion": "2", "challenger": "2"}
    assert len(here.versions()) == len(versions) + 1, "the version that was there"
    assert here.versions("blsp.lock") == []


def test_run_cancelled_in_the_midst_of_training(here: Site) -> None:
    """It has values of its own. What was there before is there again."""
    here.forget_training(in_lock=False)
    before = here.contents()
    run = here.start("training", TO_CANCEL)
    here.frozen().resume()
    here.cancel(run)
    assert here.ended(run).is_cancelled()
    wait_until(lambda: here.processes() == [], LIMIT_S)
    assert here.contents() == before and here.stale("train") == {}


def test_process_of_a_run_killed_in_the_midst_of_training(here: Site) -> None:
    here.forget_training()
    run = here.start("training")
    here.flow_process(here.frozen(rows=4)).kill()
    state = here.ended(run)
    assert state.is_crashed() and "SIGKILL" in (state.message or ""), state.message
    wait_until(lambda: here.processes() == [], LIMIT_S)
    assert not (here.workspace / "models/adapter").exists()


def test_worker_killed_in_the_midst_of_training(here: Site) -> None:
    """The run goes on from the checkpoint of the one before, to its end, and the new worker leaves it alone."""
    of_killed = here.rows()[:2]
    run = here.start("training")
    training = here.frozen(rows=6)
    here.services.kill("worker", children=False)
    here.services.up("worker")
    assert training.is_running()
    training.resume()
    assert here.completed(run).message == "1 of 6 stages ran, 5 skipped"
    here.check_training()
    assert here.rows()[:2] == of_killed, "its steps, with its times, were not made again"
