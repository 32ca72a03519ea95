"""The quantiser runs where torch is; without torch its tests are skipped.

PYTHON -m pytest tests/steps/mtp/retrofit -c /dev/null --rootdir . (test_retrofit.py does)
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    _launch = Path(__file__).parents[4] / "steps/mtp/retrofit/launch.py"
    _spec = importlib.util.spec_from_file_location("mtp_launch", _launch)
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    _module.package()
    sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
