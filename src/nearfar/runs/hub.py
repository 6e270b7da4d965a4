"""Runs on a model hub: a run folder goes up as one commit, and comes down as files that the usual loader checks.

Knows which files a run is made of and what can go wrong on the way. Nothing that is fetched is executed: there is no pickle in
a run, and only files of its own names are taken. A local folder needs neither the network nor ``huggingface_hub``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nearfar import runs
from nearfar.answers import CALIBRATION
from nearfar.errors import InputError

MODEL_FILES = (runs.CONFIG, runs.MODEL, runs.HEAD, runs.TEXT, runs.TOKENIZER, runs.HISTORY, runs.CARD)
"""What a model alone is made of."""

_DIGITS = "[0-9a-f]" * 16  # files of an index are called after their content

RUN_FILES = (
    *MODEL_FILES,
    runs.METRICS,
    CALIBRATION,
    "report.html",
    "map.parquet",
    f"{runs.INDEX}/index.json",
    *(f"{runs.INDEX}/{part}-{_DIGITS}*" for part in ("vectors", "labels", "ids", "names", "keys", "engine")),
    f"{runs.TEXTS}/index.json",
    *(f"{runs.TEXTS}/{part}-{_DIGITS}*" for part in ("vectors", "ids", "names", "keys", "engine")),
    f"{runs.PLOTS}/*.png",
    f"{runs.PLOTS}/*.svg",
)
"""Patterns of a run's own files; no other goes up or comes down."""

MESSAGE = "A nearfar run"
_REPO = re.compile(r"(?:[\w.-]+/)?[\w.-]+", re.ASCII)


def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = MESSAGE,
    revision: str | None = None,
    create_pr: bool = False,
) -> dict[str, Any]:
    """Upload a finished run, with its index, figures, plots and model card, as one commit.

    The repository is made where there is none. Files of an earlier run in it that this one does not have go away in the same
    commit; files of other names are left alone. ``checkpoints/``, hidden files and links are never uploaded.

    Args:
        run: the run folder.
        repo_id: "OWNER/NAME", or "NAME" for a repository of one's own.
        private: whether a new repository is private; None: as the owner's account is set.
        token: instead of the one that ``hf auth login`` keeps or ``HF_TOKEN`` holds.
        commit_message: the commit's first line.
        revision: the branch, made where there is none; None: the main one.
        create_pr: propose the commit as a pull request instead of writing to the branch.

    Returns:
        ``run``, ``repo``, ``url`` (of the commit, or of the pull request), ``files`` (names) and ``bytes``.

    Raises:
        InputError: the run is not finished, the extra is missing, or the hub refuses or cannot be reached.
    """
    folder = Path(run)
    runs.read_finished(folder)
    files = own_files(folder)
    hub = _hub()
    with explained(repo_id):
        api = hub.HfApi(token=token)
        whole = api.create_repo(_checked(repo_id), private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(whole, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=whole,
            folder_path=folder,
            allow_patterns=files,
            ignore_patterns=None,
            delete_patterns=list(RUN_FILES),
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    size = sum((folder / name).stat().st_size for name in files)
    return {"run": str(folder), "repo": whole, "url": commit.pr_url or commit.commit_url, "files": files, "bytes": size}


def fetch(
    repo_id: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    model_only: bool = False,
) -> Path:
    """The folder of a run: downloaded from the hub into its cache, or the local folder that ``repo_id`` names.

    Args:
        repo_id: "OWNER/NAME" on the hub, or a run folder.
        revision: branch, tag or commit; None: the main branch.
        token: instead of the one that ``hf auth login`` keeps or ``HF_TOKEN`` holds.
        cache_dir: instead of the hub's own cache.
        local_files_only: take what the cache holds and ask nobody.
        model_only: leave out index, figures and plots.

    Returns:
        A run folder, for reading only. The loaders (`Embedder.load`, `NeighborIndex.load`) compare the hashes of its parts.

    Raises:
        InputError: there is no such run, the extra is missing, or the hub refuses or cannot be reached.
    """
    folder = Path(repo_id)
    if folder.exists() or _is_path(str(repo_id)):
        if revision is not None:
            raise InputError(f"{folder} is a folder, which has no revision {revision!r}; leave it out")
        runs.read_config(folder)
        return folder
    name = str(repo_id)
    hub = _hub()
    with explained(name, revision):
        there = hub.snapshot_download(
            _checked(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=list(MODEL_FILES if model_only else RUN_FILES),
        )
    if not (Path(there) / runs.CONFIG).exists():
        raise InputError(f"{name} is not a nearfar run: it has no {runs.CONFIG}")
    return Path(there)


def fetch_file(repo_id: str, name: str, *, instead: str) -> Path:
    """The file ``name`` of any model on the hub, from the cache where it is there; ``instead``: what else could be done.

    Raises:
        InputError: as `fetch`; or the model has no such file.
    """
    hub = _hub()
    found = hub.try_to_load_from_cache(_checked(repo_id), name)  # without a word to the hub where it was fetched before
    if isinstance(found, str):
        return Path(found)
    with explained(repo_id, instead=instead):
        return Path(hub.hf_hub_download(repo_id, name))


def told(result: dict[str, Any]) -> str:
    """One line about what `push` returned."""
    return f"pushed {len(result['files'])} files ({result['bytes'] / 1e6:.1f} MB) of {result['run']}: {result['url']}"


def own_files(folder: Path) -> list[str]:
    """Names of the files of ``folder`` that belong to a run, ascending; neither hidden ones nor links.

    `pathlib`'s patterns find hidden files too.
    """
    found = {path for pattern in RUN_FILES for path in folder.glob(pattern)}
    plain = [path for path in found if path.is_file() and not path.is_symlink() and not path.name.startswith(".")]
    return sorted(path.relative_to(folder).as_posix() for path in plain)


@contextlib.contextmanager
def explained(repo_id: str, revision: str | None = None, *, instead: str = "give a local run folder") -> Iterator[None]:
    """Turn what the hub and the way there may answer into one line.

    Raises:
        InputError: whatever went wrong, with what to do.
    """
    errors = importlib.import_module("huggingface_hub.errors")
    host = importlib.import_module("huggingface_hub.constants").ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise InputError(f"{repo_id} asks for consent before it is read; give it on {host}/{repo_id}, and log in") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{repo_id} on {host} has no revision {revision or 'main'!r}") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no model {repo_id} on {host}, or it is private; check the name, and log in with `hf auth login`"
        ) from None
    except errors.HFValidationError as error:
        raise InputError(_bad_name(repo_id)) from error
    except errors.LocalEntryNotFoundError:
        raise InputError(
            f"{repo_id} is not in the cache, and {host} was not asked or cannot be reached; connect, or {instead}"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise InputError(f"{host} is not asked for {repo_id}, since HF_HUB_OFFLINE is set; unset it") from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            mend = "log in with `hf auth login`, set HF_TOKEN, or give a token that may write there"
            raise InputError(f"{host} refuses {repo_id} without the right token (status {code}); {mend}") from None
        raise InputError(f"{host} answered {code} for {repo_id}: {' '.join(str(error).split())[:200]}") from error
    except (errors.HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError) as error:  # of whichever HTTP client it has
        raise InputError(f"cannot reach {host} for {repo_id}: {' '.join(str(error).split())[:200]}; try again") from error


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise InputError("huggingface_hub is not installed, which model hubs need; run: pip install 'nearfar[hub]'") from None


def _is_path(name: str) -> bool:
    """Whether ``name`` can only be meant as a folder."""
    return name.startswith((".", "~", "/")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)


def _checked(repo_id: str) -> str:
    if not _REPO.fullmatch(repo_id) or repo_id.startswith("-"):
        raise InputError(_bad_name(repo_id))
    return repo_id


def _bad_name(repo_id: str) -> str:
    return f"{repo_id!r} names no model; expected OWNER/NAME of letters, digits, '-', '_' and '.', or a run folder"
