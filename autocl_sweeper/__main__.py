"""`python -m autocl_sweeper` is the command `autocl`."""

import sys

from autocl_sweeper.cli import main

if __name__ == "__main__":
    sys.exit(main())
