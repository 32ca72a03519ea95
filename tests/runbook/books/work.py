"""A step for tests: makes a file, slowly, and keeps a diary of each apply."""

import os
import signal
import subprocess
import time

from pydantic import BaseModel

from runbook.protocol import Check, PreconditionNotMet, Reason, StepFailure
from runbook.remedy import Remedy


class Inputs(BaseModel):
    file: str
    seconds: float = 0.0
    content: str = "done"
    mood: str = "well"
    leave: bool = False


class Outputs(BaseModel):
    file: str
    content: str


class Work:
    version = "1"
    Inputs = Inputs
    Outputs = Outputs

    def check(self, ctx):
        path = ctx.workspace / ctx.inputs.file
        if ctx.inputs.mood == "check crashes":
            raise ZeroDivisionError("in check")
        if not path.exists():
            return Check.unsatisfied(Reason("missing", f"{path.name} is missing", f"make {path}"))
        content = path.read_text()
        if ctx.inputs.mood == "hides" and not ctx.deep:
            content = ctx.inputs.content
        for n in range(20 if ctx.deep else 0):
            ctx.progress(n + 1, 20, "pages", "reads")
            time.sleep(ctx.inputs.seconds / 20)
        if content != ctx.inputs.content:
            return Check.unsatisfied(Reason("differs", f"{path.name} says {content!r}"))
        outputs = {"file": str(path), "content": content}
        if ctx.inputs.mood == "warns":
            return Check.satisfied(outputs, Reason("thin", "the ice is thin", "", "warning"))
        return Check.satisfied(outputs)

    def foresee(self, given, unknown, facts):
        if given.get("mood") == "refuses":
            yield Reason("rule", f"it refuses, and does not know {sorted(unknown)}", "cheer it up")

    def apply(self, ctx):
        diary = ctx.workspace / "diary"
        with diary.open("a") as file:
            file.write(f"{ctx.step} began\n")
            if ctx.forced:
                file.write(f"{ctx.step} trusts nothing\n")
        if ctx.inputs.leave:
            subprocess.Popen(["setsid", "sleep", "300"])
        mood = ctx.inputs.mood
        if mood == "hangs":
            time.sleep(300)
        if mood == "ignores SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(300)
        if mood == "chatters":
            for _ in range(3000):
                print("still here", flush=True)
                time.sleep(0.1)
        end = time.monotonic() + ctx.inputs.seconds
        while time.monotonic() < end:
            time.sleep(0.01)
            left = max(0.0, end - time.monotonic())
            ctx.progress(ctx.inputs.seconds - left, ctx.inputs.seconds, "seconds")
        if mood == "tells how it is cancelled":
            try:
                time.sleep(60)
            finally:
                ctx.notice("the wind may turn back")
        if mood == "notices":
            ctx.notice("the wind has turned")
        for n in range(1500 if mood == "notices without end" else 0):
            ctx.notice(f"{n} " + "x" * 5000)
        while mood == "waits" and not (ctx.workspace / "go").exists():
            time.sleep(0.02)
        if mood == "fails":
            raise StepFailure("it failed", cause="a bad mood", remedy="cheer it up")
        if mood == "fails for now":
            raise StepFailure("it failed", cause="a bad day", retryable=True)
        if mood == "fails once" and diary.read_text().count(f"{ctx.step} began") == 1:
            raise StepFailure("it failed", cause="only once", retryable=True)
        if mood == "fails and says what to do":
            remedy = Remedy("run", ("--force", "{step}"), text="rest a while, then {command}")
            raise StepFailure("it failed", remedy=remedy)
        if mood == "precondition":
            raise PreconditionNotMet("no card", remedy="buy one")
        if mood == "crashes":
            raise ZeroDivisionError("in apply")
        if mood == "segfaults":
            os.kill(os.getpid(), signal.SIGSEGV)
        if mood == "tells":
            value = ctx.secret("MY_TOKEN")
            for part in (value[:5], value[5:], "\n"):
                os.write(1, part.encode())
                time.sleep(0.05)
            raise StepFailure(f"bad token {value}", cause=f"{value} refused")
        if mood != "does nothing":
            (ctx.workspace / ctx.inputs.file).write_text(ctx.inputs.content)
        with diary.open("a") as file:
            file.write(f"{ctx.step} ended\n")

    def undo(self, ctx):
        if ctx.inputs.mood == "cannot be undone":
            raise StepFailure("it stays", remedy="remove it by hand")
        (ctx.workspace / ctx.inputs.file).unlink(missing_ok=True)
