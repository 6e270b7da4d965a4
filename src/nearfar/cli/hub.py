"""The verb that shares a run."""

from __future__ import annotations

from nearfar.cli.options import AsJson, Run, Switch
from nearfar.cli.root import app, show_result


@app.command
def push(
    run: Run,
    repo_id: str,
    /,
    *,
    private: Switch = False,
    revision: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Upload a run, with its index and model card, to the Hugging Face Hub as one commit.

    Checkpoints, hidden files and whatever is not the run's own stay here. Before, log in with hf auth login, or set HF_TOKEN.

    Parameters
    ----------
    repo_id
        OWNER/NAME of the model on the hub; made where there is none.
    private
        Make a new repository private.
    revision
        The branch; made where there is none.
    """
    from nearfar.runs import hub

    result = hub.push(run, repo_id, private=private or None, revision=revision)
    show_result(result, as_json, hub.told)
