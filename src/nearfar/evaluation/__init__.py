"""Evaluation: figures on arrays, and ``evaluate``, which embeds images first. ``docs/evaluation.md`` defines each."""

from __future__ import annotations

from nearfar.evaluation.figures import evaluate_embeddings
from nearfar.evaluation.models import evaluate

__all__ = ["evaluate", "evaluate_embeddings"]
