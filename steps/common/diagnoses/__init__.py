"""What a log of a failure says: its first error, and which known failure that is."""

from runbook.steps.common.diagnoses.catalogue import Diagnosis, Finding, catalogue, diagnose
from runbook.steps.common.diagnoses.roots import RootError, excerpt, root_error

__all__ = ["Diagnosis", "Finding", "RootError", "catalogue", "diagnose", "excerpt", "root_error"]
