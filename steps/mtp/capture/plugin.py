"""A vLLM plugin that records what the routed experts of one layer are given.

It is loaded through the entry point group `vllm.general_plugins` and does nothing unless
`RUNBOOK_CAPTURE` names a folder with `settings.json`. Rows are taken while the file `on` is in that
folder, so that warm-up passes are left out. Each row is the experts' input x (BF16), the chosen
experts (I32) and their routing weights (F32). The server must run eagerly: a captured graph calls
no Python. With tensor parallelism all ranks see the same rows, and the first records them.

record: tokens: rows are appended to `rows-PID.bin`; `rows-PID.json` says what a row is.
record: moments: a thread beside the model adds rows to the moments of their experts' inputs. Once
`on` is gone it writes `moments-E.safetensors` for each expert, then `done.json`; `recording-PID`
says that there is something to wait for, `failed` why nothing more will come.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from pathlib import Path
from typing import Any

FOLDER = "RUNBOOK_CAPTURE"
SETTINGS = "settings.json"
"""layer: the prefix of the layer, such as `model.layers.43.`; record; and for moments the
checkpoint with the experts' weights, their prefix in it, and the limit of the activation."""
ON = "on"
DONE = "done.json"
FAILED = "failed"
DEPTH = 16
"""Forward passes that may wait for the thread, at most; then the model waits."""
POLL = 0.2


class Rows:
    """Appends each row to a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: Any = None

    def write(self, x: Any, experts: Any, weights: Any) -> None:
        import torch

        flat = [p.contiguous().view(torch.uint8).cpu() for p in (x, experts, weights)]
        if self._file is None:
            name = f"rows-{os.getpid()}"
            about = {"hidden": x.shape[1], "top": experts.shape[1]}
            (self.folder / f"{name}.json").write_text(json.dumps(about))
            self._file = (self.folder / f"{name}.bin").open("ab", buffering=0)
        self._file.write(torch.cat(flat, 1).numpy().tobytes())


class Moments:
    """Hands rows to a thread, which is started by the first. The package `mtp_retrofit` must be
    importable: the step puts it beside the plugin."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self._rows: queue.Queue[tuple[Any, Any, Any]] = queue.Queue(DEPTH)
        self._lock = threading.Lock()
        """Held while `on` is looked at and what depends on it is done."""
        self._thread: threading.Thread | None = None
        self._closed = False

    def write(self, x: Any, experts: Any, weights: Any) -> None:
        row = tuple(p.to("cpu", copy=True) for p in (x, experts, weights))
        with self._lock:
            if self._closed or not (self.folder / ON).exists():
                return
            if self._thread is None:
                (self.folder / f"recording-{os.getpid()}").touch()
                self._thread = threading.Thread(target=self._run, args=(x.is_cuda,), daemon=True)
                self._thread.start()
            while not self._closed:
                try:
                    self._rows.put(row, timeout=POLL)
                    break
                except queue.Full:
                    pass  # the thread is behind, or has just failed

    def _run(self, spare: bool) -> None:
        """`spare`: the model computes elsewhere, so half of the processors are free."""
        import torch

        try:
            if spare:
                torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
            with torch.inference_mode():
                self._take()
        except Exception as error:  # whatever it is, the step must not wait for it
            self._closed = True
            text = str(error) if type(error).__name__ == "InputError" else repr(error)
            _replace(self.folder / FAILED, text)

    def _take(self) -> None:
        import torch
        from mtp_retrofit.source import Experts
        from mtp_retrofit.stream import Stream

        given = self.settings
        experts = Experts.open(Path(given["checkpoint"]), given["prefix"], torch.device("cpu"))
        stream = Stream(experts, given["limit"], self.folder)
        while True:
            try:
                stream.add(*self._rows.get(timeout=POLL))
            except queue.Empty:
                if self._close():
                    break
        counts = stream.finish()
        _replace(self.folder / DONE, json.dumps({"tokens": stream.tokens, "counts": counts}))

    def _close(self) -> bool:
        """Whether all was taken and nothing more will come."""
        # Who has the lock may wait for this thread to take rows: then it is not over.
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._closed = self._rows.empty() and not (self.folder / ON).exists()
            return self._closed
        finally:
            self._lock.release()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def register() -> None:
    """Entry point of the plugin; called once in each of vLLM's processes."""
    folder = Path(os.environ.get(FOLDER) or os.devnull)
    if not (folder / SETTINGS).is_file():
        return
    import torch
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    settings = json.loads((folder / SETTINGS).read_text())
    tokens = settings["record"] == "tokens"
    recorder = Rows(folder) if tokens else Moments(folder, settings)
    layer, on = settings["layer"], folder / ON
    original = MoERunner._apply_quant_method

    def recorded(self: Any, hidden_states: Any, router_logits: Any, *rest: Any, **more: Any) -> Any:
        wanted = self.routed_experts.layer_name.startswith(layer)
        if wanted and on.exists() and get_tensor_model_parallel_rank() == 0:
            # The kernel may do the routing itself, so it is asked for here.
            weights, experts = self.router.select_experts(
                hidden_states=hidden_states,
                router_logits=router_logits,
                topk_indices_dtype=None,
                input_ids=more.get("input_ids"),
            )
            x, experts = hidden_states.detach().to(torch.bfloat16), experts.to(torch.int32)
            recorder.write(x, experts, weights.detach().to(torch.float32))
        return original(self, hidden_states, router_logits, *rest, **more)

    MoERunner._apply_quant_method = recorded
