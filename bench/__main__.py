"""``python -m bench``; scripts/bench makes sure first that everything is there."""

import sys

from bench.cli import main

sys.exit(main(sys.argv[1:]))
