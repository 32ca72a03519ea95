"""In place of the probe's Python: behaves as STAND_IN says of this method and this peer access."""

import json
import os
import sys
import time

words = sys.argv[2:]
given = dict(zip(words[::2], words[1::2], strict=False))
method = given["--method"]
key = method if method != "backend" else f"p2p {os.environ.get('NCCL_P2P_DISABLE')}"
mode = json.loads(os.environ["STAND_IN"])[key]
rank = int(given["--rank"])
with open(os.environ["DIARY"], "a") as diary:
    diary.write(f"{key} {rank} {os.environ['NCCL_NVLS_ENABLE']} {os.environ.get('FROM_BOOK')}\n")

if mode == "hangs" and rank == 1:
    time.sleep(600)
if mode == "crashes" and rank == 1:
    sys.exit("Traceback:\nncclSystemError: unhandled system error")
if mode == "killed" and rank == 1:
    os.kill(os.getpid(), 9)
if mode in ("hangs", "crashes", "killed"):
    time.sleep(600)
if mode == "silent":
    print("nothing to tell")
    sys.exit()
if mode == "absent":
    print(json.dumps({"unavailable": "not for these GPUs"}))
    sys.exit()
print("NCCL version 2.28.9 {not json}")
sizes = [int(word) for word in words[words.index("--sizes") + 1 :]]
speed = float(mode.partition(" ")[2] or 1)
wrong = 3 if mode.startswith("wrong") and rank == 1 else 0
answer = [
    {"bytes": s, "seconds": s / 1e9 / speed * (1 + rank), "gb_per_second": speed, "wrong": wrong}
    for s in sizes
]
print(json.dumps({"torch": "2.14.0", "sizes": answer}))
