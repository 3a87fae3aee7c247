"""What the drills share: one site, and its first run, which makes everything from nothing."""

from collections.abc import Iterator

import pytest

from tests.drills.site import Site, site


@pytest.fixture(scope="session")
def here() -> Iterator[Site]:
    """A site on which the pipeline has run once, as scheduled."""
    with site() as made:
        made.first_run()
        yield made
