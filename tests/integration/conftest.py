"""What several files of this folder begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration.fake_kubernetes import FakeKubernetes


@pytest.fixture
def fake(tmp_path: Path) -> FakeKubernetes:
    """A scripted API server of an empty namespace."""
    from integration.fake_kubernetes import FakeKubernetes  # not everybody has the extra

    return FakeKubernetes(tmp_path)
