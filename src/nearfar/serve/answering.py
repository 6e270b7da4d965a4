"""What is said of one image, in the words of the interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nearfar.answers import UNKNOWN

Shown = list[dict[str, Any]]
"""Neighbours of an image, nearest first: ``id``, ``name``, ``label`` and ``score`` of each."""


@dataclass(frozen=True)
class Predicted:
    """What is said of one image."""

    voted: str  # the class of the most votes
    known: bool  # whether that is sure enough to be said
    probability: float  # that it is right
    votes: float  # its share of the vote
    position: tuple[float, float]  # on the map, x and y from 0 to 1
    neighbors: Shown

    def as_json(self) -> dict[str, Any]:
        """As the interface has it."""
        return {
            "label": self.voted if self.known else UNKNOWN,
            "voted": self.voted,
            "known": self.known,
            "probability": round(self.probability, 6),
            "votes": round(self.votes, 6),
            "neighbors": self.neighbors,
            "position": [round(self.position[0], 5), round(self.position[1], 5)],
        }
