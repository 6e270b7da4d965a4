"""Jobs that are disturbed, the ground that they are done on, and what they leave when nobody disturbs them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reliability import children, jobs
from samples import shapes

FIRST = [f"new6/{number}" for number in range(3)]


@dataclass(frozen=True)
class Case:
    """A job that is disturbed.

    Attributes:
        job: done in a child.
        arguments: what it is given, made of the folder that it works in.
        known: what the folder says when it is opened, which must be what it said before the job, or what it says after it.
        steps: the job leaves more than one state that is neither; it goes on from there.
    """

    job: Callable[..., Any]
    arguments: Callable[[Path], tuple[Any, ...]]
    known: Callable[[Path], Any] = field(default=lambda home: jobs.names_in(home / "run"))
    steps: bool = False


CASES = {
    "train": Case(jobs.train, lambda home: (home / "fresh",), steps=True),
    "often": Case(jobs.train, lambda home: (home / "fresh", 0.02), steps=True),  # a checkpoint after nearly every step
    "finetune": Case(jobs.train_head, lambda home: (home / "run", home / "fresh"), steps=True),
    "npz": Case(jobs.embed, lambda home: (home / "run", home / "z.npz")),
    "parquet": Case(jobs.embed, lambda home: (home / "run", home / "z.parquet")),
    "add": Case(jobs.add, lambda home: (home / "run",)),
    "remove": Case(jobs.remove, lambda home: (home / "run", FIRST)),
    "save": Case(jobs.save, lambda home: (home / "other", home / "run"), lambda home: jobs.model_in(home / "run")),
    "serve": Case(jobs.add_by_service, lambda home: (home / "run", shapes(1, seed=9).images[:], "nine")),
    "evaluate": Case(jobs.evaluate, lambda home: (home / "run",)),
    "report": Case(jobs.report, lambda home: (home / "run",)),
    "export": Case(jobs.export, lambda home: (home / "run",)),
    "explore": Case(jobs.explore, lambda home: (home / "run",)),
}


class Ground:
    """Folders to disturb jobs in, and what these leave undisturbed.

    Every folder holds ``run``, to which images were added; ``other``, a run of other weights; and earlier files of embeddings.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.copies = home, 0
        self.done: dict[str, tuple[Path, children.Ended]] = {}
        start = home / "start"
        for job, *arguments in (
            (jobs.train, start / "run"),
            (jobs.train_head, start / "run", start / "other"),
            (jobs.add, start / "run", 4, 6),
        ):
            ended = children.run(job, *arguments)
            assert ended.code == 0, ended.said
        for ending in ("npz", "parquet"):
            (start / f"z.{ending}").write_text("earlier")
        self.before = jobs.contents(start)

    def copy(self) -> Path:
        self.copies += 1
        return Path(shutil.copytree(self.home / "start", self.home / str(self.copies)))

    def undisturbed(self, name: str) -> tuple[Path, children.Ended]:
        """The folder as the job leaves it, and how it ended."""
        if name not in self.done:
            home, case = self.copy(), CASES[name]
            ended = children.run(case.job, *case.arguments(home))
            assert ended.code == 0, ended.said
            self.done[name] = home, ended
        return self.done[name]

    def disturb(self, name: str, **how: Any) -> children.Ended:
        """Kill the job, look at what it leaves, and do it again."""
        case, home, (whole, _) = CASES[name], self.copy(), self.undisturbed(name)
        after = jobs.contents(whole)
        ended = children.run(case.job, *case.arguments(home), **how)
        assert ended.code <= 0, ended.said
        if not case.steps:
            for file, found in jobs.contents(home).items():
                assert found in (self.before.get(file), after.get(file)), f"{file} is neither that of before nor of after"
            known = case.known(home)
            assert known == case.known(whole) or (ended.code and known == case.known(self.home / "start"))
        again = children.run(case.job, *case.arguments(home))
        assert again.code == 0, again.said
        found = jobs.contents(home)
        assert {file: found.get(file) for file in after} == after
        assert all(jobs.is_superseded(home, file) for file in found.keys() - after.keys())
        assert not [left for left in jobs.left_overs(home) if not left.startswith("checkpoints/")]
        shutil.rmtree(home)
        return ended
