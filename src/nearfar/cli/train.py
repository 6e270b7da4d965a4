"""Verbs that train, and the recipes that they train by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nearfar.cli.options import AsJson, Device, Settings, SkipBad, Switch
from nearfar.cli.root import app, show_result


@app.command
def train(
    data: str,
    /,
    *,
    recipe: str | None = None,
    start: Annotated[Path | None, Parameter(name="--from")] = None,
    out: Path | None = None,
    seed: int = 0,
    epochs: float | None = None,
    unseen: str | None = None,
    device: Device = "auto",
    settings: Settings = (),
    resume: Switch = False,
    skip_bad: SkipBad = False,
    tensorboard: Annotated[str | bool, Parameter(negative="", show_default=False)] = False,
    processes: int = 1,
    as_json: AsJson = False,
) -> None:
    """Train an embedding and leave a run folder.

    Parameters
    ----------
    data
        A name (mnist, fashion-mnist, digits), a folder with one sub-folder per class, a folder with metadata.csv, IDX
        files, a pixel CSV, .npz, or Parquet with an image column.
    recipe
        A name that `nearfar recipes` lists, or a .toml file; by default that of --from, or the one that suits the data.
    start
        A run folder whose encoder training begins with; --set train.mode=linear trains a linear classifier on it,
        train.mode=finetune both together.
    out
        The run folder; by default a new one below runs/.
    seed
        Everything random follows from it.
    epochs
        Instead of the recipe's.
    unseen
        Classes to keep from training, with commas between them, or a share of all classes, e.g. 0.3; evaluate says how
        well they are told apart.
    settings
        Change the recipe, e.g. --set loss.temperature=0.2 train.epochs=5.
    resume
        Go on with the interrupted run in --out.
    tensorboard
        Write the figures of every epoch, and at the end the embedding, for TensorBoard: into the folder that follows, or
        else into tensorboard/ of the run folder.
    processes
        How many processes of this machine share the work, and its cores; the result is that of one.
    """
    from nearfar import show, verbs
    from nearfar.recipe import parse_changes
    from nearfar.training.progress import ProgressLine

    result = verbs.train(
        data,
        recipe=recipe,
        start=start,
        out=out,
        seed=seed,
        epochs=epochs,
        unseen=unseen,
        device=device,
        changes=parse_changes(settings),
        resume=resume,
        skip_bad=skip_bad,
        watcher=ProgressLine(),
        tensorboard=tensorboard,
        processes=processes,
    )
    if result:  # of several processes the first alone has one
        show_result(result, as_json, show.trained)


@app.command
def recipes(
    name: str | None = None,
    /,
    *,
    views: str | None = None,
    out: Path = Path("views.png"),
    seed: int = 0,
    settings: Settings = (),
    skip_bad: SkipBad = False,
) -> None:
    """List the recipes, or show one whole; with --views also draw what it makes of images.

    Parameters
    ----------
    name
        The recipe to show, as TOML; save it to a file to make your own of it. With --views also such a file.
    views
        Images, as train takes them: some of them are drawn, each beside six views of it, as training sees them.
    out
        The picture to draw, .png or .svg.
    seed
        Which images, and by which random numbers they are changed.
    settings
        Change the recipe for the picture, e.g. --set augment.degrees=30.
    """
    from nearfar import recipe, show
    from nearfar.errors import InputError
    from nearfar.recipe import parse_changes

    if views is None:
        print(recipe.recipe_text(name).rstrip() if name is not None else show.recipes())
        return
    if name is None:
        raise InputError("--views draws what one recipe does; name it: nearfar recipes NAME --views DATA")
    from nearfar.viewing import draw_views

    result = draw_views(name, views, out=out, seed=seed, changes=parse_changes(settings), skip_bad=skip_bad)
    print(f"{len(result['images'])} images with {result['views']} views of each, by {result['recipe']}: {result['out']}")
