"""Each outbox for whoever asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.outboxes import KINDS, Harness, Outbox


@pytest.fixture(params=KINDS)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    return Harness.of(request.param, tmp_path)


@pytest.fixture
def outbox(harness: Harness) -> Iterator[Outbox]:
    with harness.open() as outbox:
        yield outbox
