"""`python -m blsp` is `blsp`."""

import sys

from blsp.cli import main

sys.exit(main())
