"""`python -m blsp.tracking`: the child process behind a stage's Tracker; it reads its standard input."""

import sys

from blsp.tracking.live import main

if __name__ == "__main__":
    sys.exit(main())
