"""What the next steps are made of, made by a thread while the present one trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """make(step) for a range of steps in their order, up to `count` of them before they are asked for.

    make follows from its step alone, so nothing depends on `count`; 0 makes each when it is asked for, without a thread.
    What make raises is raised when its step is asked for. To be used as a context: leaving it ends the thread.
    """

    def __init__(self, make: Callable[[int], Made], steps: range, count: int):
        self.make, self.steps, self.count = make, steps, count
        self.made: dict[int, Future[Made]] = {}
        self.thread = ThreadPoolExecutor(1, "ahead") if count else None

    def take(self, step: int) -> Made:
        if self.thread is None:
            return self.make(step)
        for number in range(step, min(step + self.count + 1, self.steps.stop)):
            if number not in self.made:
                self.made[number] = self.thread.submit(self.make, number)
        return self.made.pop(step).result()

    def rest(self) -> None:
        """Wait until the thread has nothing to do: it shares the tokenizer, which serves one caller at a time."""
        wait(self.made.values())

    def __enter__(self) -> "Ahead[Made]":
        return self

    def __exit__(self, *raised) -> None:
        if self.thread:
            self.thread.shutdown(cancel_futures=True)
