"""The hub and the repository of the tests of downloads serve those of the step too."""

from tests.steps.common.hub.conftest import alone, repository, source

__all__ = ["alone", "repository", "source"]
