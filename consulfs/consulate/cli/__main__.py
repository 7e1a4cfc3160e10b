"""`python -m consulfs.consulate.cli`"""

import sys

from consulfs.consulate.cli import main

sys.exit(main())
