"""Training, from a recipe and images to an encoder: the parts (`parts`), the loop (`loop`), one step of it (`step`).

Beside them what the loop asks: optimisers, precision, checkpoints, what stands still (`frozen`), whether all goes well
(`health`), figures on held-out images (`validate`); and what is left of a training in a run's folder (`trained`).
"""
