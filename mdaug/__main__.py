"""`python -m mdaug` is the `mdaug` command."""

import sys

from mdaug.cli import main

sys.exit(main())
