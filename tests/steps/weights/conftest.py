"""The hub and the repository of the tests of downloads serve those of the step too."""

from tests.steps.common.hub.conftest import alone, folder, hub, repository, run, source

__all__ = ["alone", "folder", "hub", "repository", "run", "source"]
