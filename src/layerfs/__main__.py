"""`python -m layerfs` is `layerfs`."""

from layerfs.start import run

run()
