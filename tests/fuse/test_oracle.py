"""Random operations on layerfs and on the kernel's overlayfs over equal layers: both must do the same.

With checkpoints, going back and forks among them, it must do what a plain directory does, and copies of it.

In the suite this runs for some 20 seconds. LAYERFS_ORACLE_STEPS=20000 runs so many steps instead, and
reduces a failure to the fewest actions that show it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from tests.fuse.oracle.budget import Budget, Enough
from tests.fuse.oracle.machine import TwoMounts
from tests.fuse.oracle.rules import Oracle
from tests.fuse.oracle.timetravel import TimeTravel

STEPS = int(os.environ.get("LAYERFS_ORACLE_STEPS", "0"))
SHRINK = os.environ.get("LAYERFS_ORACLE_SHRINK") != "0"
STEPS_PER_EXAMPLE = 50
SECONDS = 20.0


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore what the two sides change for the whole process."""
    monkeypatch.setenv("LAYERFS_RUN", "")
    mask = os.umask(0o022)
    yield
    os.umask(mask)


@pytest.mark.root
@pytest.mark.timeout(0 if STEPS else 120)
@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("oracle", [Oracle, TimeTravel], ids=["kernel", "timetravel"])
def test_does_what_others_do(oracle: type[TwoMounts]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")

    class Run(oracle):  # type: ignore[misc, valid-type]
        budget = Budget(steps=STEPS or None, seconds=None if STEPS else SECONDS)

    # Only a long run has the time to reduce a failure.
    phases = (Phase.generate, Phase.shrink) if STEPS and SHRINK else (Phase.generate,)
    profile = settings(
        max_examples=10**6,
        stateful_step_count=STEPS_PER_EXAMPLE,
        phases=phases,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Run, settings=profile)
    except (Enough, Flaky):  # an end in an example that begins like an earlier one looks flaky to Hypothesis
        if not Run.budget.spent:
            raise
    assert Run.budget.done
