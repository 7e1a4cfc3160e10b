"""`python -m consulfs` is the `consulfs` command."""

import sys

from consulfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
