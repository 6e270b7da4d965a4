"""A trained embedding for other tools: TensorBoard's Embedding Projector (`projector`), any ONNX runtime (`onnx`)."""

from __future__ import annotations

from nearfar.export.projector import export_projector, sheet_layout

__all__ = ["export_projector", "sheet_layout"]
