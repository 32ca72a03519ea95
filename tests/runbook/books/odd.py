"""A step for tests whose check does what a check should not."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from runbook.protocol import Check, Reason, StepFailure, Work
from runbook.remedy import Remedy


class Inputs(BaseModel):
    mood: str


class Outputs(BaseModel):
    number: int


class Oops(BaseException):
    pass


class Odd:
    version = "1"
    Inputs, Outputs = Inputs, Outputs

    @staticmethod
    def misbehave(mood):
        if mood == "exits":
            sys.exit(0)
        if mood == "exits at once":
            os._exit(0)
        if mood == "raises":
            raise Oops("oops")
        if mood == "interrupts":
            raise KeyboardInterrupt
        if mood == "segfaults":
            ctypes.string_at(0)
        if mood == "hangs":
            time.sleep(300)
        if mood == "hangs and forks":
            subprocess.run(["sleep", "300"])
        while mood == "hangs for good":
            try:
                time.sleep(300)
            except BaseException:
                pass
        if mood == "prints":
            print("printed")
            os.write(1, b"written\n")
            subprocess.run(["echo", "echoed"], check=True)
        if mood == "floods":
            print("x" * 10_000_000)

    def foresee(self, given, unknown, facts):
        mood, ahead, _ = str(given.get("mood", "")).partition(" ahead")
        if not ahead:
            return []
        self.misbehave(mood)
        if mood == "gives nothing":
            return None
        return ["text"] if mood == "gives text" else []

    def check(self, ctx):
        mood, later, _ = ctx.inputs.mood.partition(" once made")
        if later and not (ctx.workspace / "applied").exists():
            return Check.unsatisfied(Reason("unmade", "it was not made"))
        number = 1
        self.misbehave(mood)
        if mood == "gives nothing":
            return None
        if mood == "gives text":
            number = "one"
        if mood == "gives a path":
            number = Path("/")
        if mood == "gives no number":
            number = float("nan")
        if mood == "gives others":
            return Check.satisfied({"count": 1})
        again = Remedy("run", ("--force", "{step}"))
        if mood == "lacks":
            return Check.unsatisfied(Reason("lacks", "it lacks", again), work=Work(5))
        if mood == "refuses":
            raise StepFailure("it will not say", code="refused", remedy=again)
        return Check.satisfied({"number": number})

    def apply(self, ctx):
        (ctx.workspace / "applied").touch()
