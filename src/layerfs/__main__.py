"""`python -m layerfs` is `layerfs`."""

import sys

from layerfs.cli import main

sys.exit(main())
