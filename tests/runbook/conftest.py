import pytest

from runbook.state.workspace import Workspace
from tests.runbook.fakes import FakeStep, World


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A workspace whose steps, of the kind `fake`, and attempts have no processes."""
    world = World(Workspace(tmp_path / "workspace"))
    kind = FakeStep(world)
    monkeypatch.setattr("runbook.planning.evaluate.load_step", lambda uses, folder: kind)
    return world
