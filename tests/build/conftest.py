"""Stages of builds."""

from __future__ import annotations

import pytest

from tests.build.stages import Stage
from tests.conftest import Layerfs


@pytest.fixture
def stage(layerfs: Layerfs) -> Stage:
    """An empty stage, with a context that holds a Dockerfile."""
    return Stage(layerfs)


@pytest.fixture
def other(layerfs: Layerfs) -> Stage:
    """Another empty stage."""
    return Stage(layerfs, "other")
