"""What this machine has, what would make training here faster, and a proof that several processes do what one does."""

from nearfar.doctor.examine import examine

__all__ = ["examine"]
