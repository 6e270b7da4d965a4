"""Help: every option of every verb is explained, also those that verbs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cyclopts import App

from nearfar.cli import app, main


def verbs(parent: App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    for name in parent:
        if not name.startswith("-"):
            verb = parent[name]
            yield from [((*path, name), verb)] if verb.default_command is not None else verbs(verb, (*path, name))


VERBS = dict(verbs(app))


def test_no_verb_is_lost() -> None:
    known = {"train", "recipes", "evaluate", "report", "compare", "embed", "search", "predict", "export"}
    assert {(name,) for name in known} | {("data", name) for name in ("list", "fetch", "check")} <= set(VERBS)


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for argument in VERBS[path].assemble_argument_collection(parse_docstring=True):
        assert argument.parameter.help, argument.name
    with pytest.raises(SystemExit) as ended:
        main([*path, "--help"])
    assert ended.value.code == 0
    assert f"Usage: nearfar {' '.join(path)}" in capsys.readouterr().out


def test_an_option_that_verbs_share_reads_alike_everywhere() -> None:
    texts: dict[str, set[str]] = {}
    for verb in VERBS.values():
        for argument in verb.assemble_argument_collection(parse_docstring=True):
            if argument.name in ("RUN", "--device", "--skip-bad", "-k"):
                texts.setdefault(argument.name, set()).add(str(argument.parameter.help))
    assert {name: len(found) for name, found in texts.items()} == {"RUN": 1, "--device": 1, "--skip-bad": 1, "-k": 1}
