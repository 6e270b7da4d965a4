"""Labels that are likely wrong: images whose neighbours disagree with their label, and copies with different labels."""

from __future__ import annotations

from nearfar.labelissues.find import label_issues

__all__ = ["label_issues"]
