"""The scheduled run, from nothing to the champion."""

from tests.drills.site import Site


def test_scheduled_run_makes_everything_and_its_model_is_promoted(here: Site) -> None:
    run, promotion = here.read(here.scheduled), here.read(here.promoted)
    assert run.auto_scheduled and run.state and run.state.message == "7 of 7 stages ran, 0 skipped"
    assert promotion.state and promotion.state.message == "blsp version 1 is champion now"
    assert promotion.created_by and promotion.created_by.type == "AUTOMATION"
    assert here.aliases() == {"champion": "1", "challenger": "1"}
