"""A contender for tests of `tools.bench.turns`; its process imports nothing else."""

import os


class Contender:
    """Answers, fails and dies as it is told."""

    def __init__(self, made_badly=False):
        if made_badly:
            raise ValueError("badly made")
        self.calls = 0

    def turn(self, action="answer"):
        self.calls += 1
        if action == "fail":
            raise ValueError("no more")
        if action == "die":
            os._exit(3)
        return {"seconds": float(self.calls), "process": os.getpid()}
