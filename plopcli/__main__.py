"""`python -m plopcli`."""

import sys

from plopcli.cli.app import main

sys.exit(main())
