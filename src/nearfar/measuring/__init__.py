"""The figures of a run: images brought together with it (`judging`), measured (`figures`), told to people (`text`).

Formulas lie in `nearfar.evaluation`, which knows of no run.
"""
