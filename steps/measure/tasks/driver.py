"""Evaluate by lm-eval, in its own environment: as `lm-eval run` does, but that only the folders of
the tasks at hand are read, where the program itself reads 14,000 files of tasks first.

    python driver.py '{"model": {...}, "tasks": [...], "folders": [...], ...}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(asked: dict[str, Any]) -> None:
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    shipped = Path(lm_eval.__file__).parent / "tasks"
    folders = [str(shipped / name) for name in asked["folders"]]  # an absolute one stays itself
    tracker = EvaluationTracker(output_path=asked["out"])
    results = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args=asked["model"],
        tasks=asked["tasks"],
        num_fewshot=asked["fewshot"],
        limit=asked["limit"],
        gen_kwargs=asked["generation"],
        apply_chat_template=True,
        log_samples=True,
        evaluation_tracker=tracker,
        task_manager=TaskManager(include_path=folders, include_defaults=False),
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
