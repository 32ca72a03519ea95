"""A vLLM plugin that records what the routed experts of one layer are given.

It is loaded through the entry point group `vllm.general_plugins` and does nothing unless
`RUNBOOK_CAPTURE` names a folder. Rows are written while the file `on` is in that folder, so that
warm-up passes are left out. Each row is the experts' input x (BF16), the chosen experts (I32) and
their routing weights (F32). The server must run eagerly: a captured graph calls no Python.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOLDER = "RUNBOOK_CAPTURE"
LAYER = "RUNBOOK_CAPTURE_LAYER"
"""The prefix of the layer, such as `model.layers.43.`."""


class Recorder:
    """Appends rows to `rows-PID.bin` and says in `rows-PID.json` what a row is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: Any = None

    @property
    def on(self) -> bool:
        return (self.folder / "on").exists()

    def write(self, x: Any, experts: Any, weights: Any) -> None:
        import torch

        parts = (x.to(torch.bfloat16), experts.to(torch.int32), weights.to(torch.float32))
        flat = [p.detach().contiguous().view(torch.uint8).cpu() for p in parts]
        if self._file is None:
            name = f"rows-{os.getpid()}"
            about = {"hidden": x.shape[1], "top": experts.shape[1]}
            (self.folder / f"{name}.json").write_text(json.dumps(about))
            self._file = (self.folder / f"{name}.bin").open("ab", buffering=0)
        self._file.write(torch.cat(flat, 1).numpy().tobytes())


def register() -> None:
    """Entry point of the plugin; called once in each of vLLM's processes."""
    folder, layer = os.environ.get(FOLDER), os.environ.get(LAYER)
    if not folder or not layer:
        return
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    recorder = Recorder(Path(folder))
    original = MoERunner._apply_quant_method

    def recorded(self: Any, hidden_states: Any, router_logits: Any, *rest: Any, **more: Any) -> Any:
        wanted = self.routed_experts.layer_name.startswith(layer)
        if wanted and recorder.on and get_tensor_model_parallel_rank() == 0:
            # The kernel may do the routing itself, so it is asked for here.
            weights, experts = self.router.select_experts(
                hidden_states=hidden_states,
                router_logits=router_logits,
                topk_indices_dtype=None,
                input_ids=more.get("input_ids"),
            )
            recorder.write(hidden_states, experts, weights)
        return original(self, hidden_states, router_logits, *rest, **more)

    MoERunner._apply_quant_method = recorded
