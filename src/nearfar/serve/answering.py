"""What is said of one image, in the words of the interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nearfar.answers import UNKNOWN


@dataclass(frozen=True)
class Found:
    """What lies near one image, and where on the map it belongs."""

    neighbors: list[dict[str, Any]]  # nearest first: ``id``, ``name``, ``label`` and ``score`` of each
    position: tuple[float, float]  # x and y from 0 to 1

    def as_json(self) -> dict[str, Any]:
        """As the interface has it."""
        return {"neighbors": self.neighbors, "position": [round(self.position[0], 5), round(self.position[1], 5)]}


@dataclass(frozen=True)
class Predicted:
    """What is said of one image."""

    voted: str  # the class of the most votes
    known: bool  # whether that is sure enough to be said
    probability: float  # that it is right
    votes: float  # its share of the vote
    near: Found

    def as_json(self) -> dict[str, Any]:
        """As the interface has it."""
        return {
            "label": self.voted if self.known else UNKNOWN,
            "voted": self.voted,
            "known": self.known,
            "probability": round(self.probability, 6),
            "votes": round(self.votes, 6),
            **self.near.as_json(),
        }
