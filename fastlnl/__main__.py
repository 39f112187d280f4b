"""`python -m fastlnl` is the `fastlnl` command."""

import sys

from fastlnl.cli import main

sys.exit(main())
