"""The command line: one verb a stage, no logic. Progress goes to stderr, results to stdout.

`root` holds the application, `options` what several verbs take; the verbs stand by stage. Each imports what it calls only
when it is called, so that help and refusals come at once.
"""

from nearfar.cli import data, doctor, hub, index, judge, look, serve, train, use
from nearfar.cli.root import app, main

__all__ = ["app", "data", "doctor", "hub", "index", "judge", "look", "main", "serve", "train", "use"]
