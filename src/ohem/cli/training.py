"""Commands for one detector: data, training, evaluation, detection."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ohem.cli.app import Cluster, Devices, Metric, RunTest, Settings, app
from ohem.config.recipes import list_recipes, named_recipe
from ohem.config.resolve import format_recipe
from ohem.config.schema import ProposalConfig, Recipe, TestConfig
from ohem.demo.text import STEPS
from ohem.errors import InputError


@app.command
def demo(
    folder: Path = Path("runs/demo"), /, *, steps: int = STEPS, train_images: int = 160, test_images: int = 80
) -> None:
    """Train with heuristic sampling and with OHEM on generated images, and compare them. Nothing is downloaded.

    Parameters
    ----------
    folder
        Folder for the data, both runs and the pictures.
    steps
        Number of training steps of each method.
    train_images
        Number of generated images to train on.
    test_images
        Number of generated images to test on.
    """
    from ohem.demo import run_demo

    run_demo(folder, steps=steps, train_images=train_images, test_images=test_images)


@app.command
def propose(
    *sources: str,
    negatives: tuple[str, ...] = (),
    cluster: Cluster = None,
    settings: Annotated[ProposalConfig, Parameter(name="*")] = ProposalConfig(),  # noqa: B008  frozen
) -> None:
    """Make the proposals of data sets, by selective search if nothing else is named, and keep them with the data.

    Parameters
    ----------
    sources
        One or several data sets, FOLDER:SPLIT, ANNOTATIONS.json:IMAGES or data.yaml:SPLIT.
    negatives
        Folders of --data.negatives.
    """
    from ohem.inputs.propose import make_proposals

    make_proposals(sources, negatives, settings, cluster)


@app.command
def train(
    run: Path,
    /,
    *,
    recipe: str,
    config: Path | None = None,
    devices: str | None = None,
    settings: Settings = Recipe(),  # noqa: B008  frozen
) -> None:
    """Train a detector into the folder RUN. Repeat the command to resume the training.

    An option that is not given has the value of the recipe; `ohem recipes NAME` prints them.

    Parameters
    ----------
    run
        Folder for recipe.yaml, metrics.csv and the checkpoints.
    recipe
        Recipe that gives the options their values; `ohem recipes` lists the recipes.
    config
        YAML file with options that replace those of the recipe, nested as in recipe.yaml.
    devices
        Short for --run.devices.
    """
    from ohem.training.run import run_training

    run_training(run, recipe, settings, devices)


@app.command(name="eval")
def evaluate(
    run: Path,
    /,
    *,
    data: tuple[str, ...] = (),
    metric: Metric = None,
    loss: bool = False,
    submit: Path | None = None,
    out: Path | None = None,
    curve: int = 0,
    devices: Devices = "1",
    test: RunTest = TestConfig(),  # noqa: B008  frozen
) -> None:
    """Evaluate a run: print a table and write RUN/eval.json, and for COCO data RUN/detections.json.

    A test option that is not given has the value of the run.

    Parameters
    ----------
    run
        Folder of the run.
    data
        Data sets to evaluate on. Default: --data.test of the run.
    loss
        Also measure the mean loss over all RoIs of the training images and negatives (figure 3 of the paper).
    submit
        Folder for the result files of the VOC server, comp4_det_test_CLASS.txt. Annotations may be missing. VOC only.
    out
        File to write instead of RUN/eval.json.
    curve
        Evaluate this number of snapshots (--run.snapshot-every), evenly spread, and only write RUN/map_curve.json.
    """
    if curve:
        from ohem.evaluation.map_curve import evaluate_curve

        if loss or submit or out:
            raise InputError("--curve only writes RUN/map_curve.json: leave out --loss, --submit and --out")
        evaluate_curve(run, curve, data, metric, test, devices)
        return
    from ohem.evaluation.evaluate import evaluate_run

    evaluate_run(run, data, metric, loss, test, submit, out, devices)


@app.command
def loss(*runs: Path, data: tuple[str, ...] = (), plot: Path | None = None, devices: Devices = "1") -> None:
    """Measure the mean loss over all RoIs at every snapshot of runs (figure 3 of the paper), and print a table.

    Parameters
    ----------
    runs
        Folders of runs that were trained with --run.snapshot-every or --run.loss-every. Of other runs, only the newest
        checkpoint is measured. Results are kept in RUN/loss_all.csv and are not measured again.
    data
        Data sets to measure on. Default: the training data of each run, with its negatives.
    plot
        .svg or .png file for a chart of all runs. Runs whose names differ only in a trailing -SEED are one method.
    """
    from ohem.experiments.loss_curves import compare_losses

    compare_losses(runs, data, plot, devices=devices)


@app.command
def detect(
    run: Path,
    /,
    *images: str,
    out: Path,
    score: float = 0.5,
    jobs: int = -1,
    devices: Devices = "1",
    test: RunTest = TestConfig(),  # noqa: B008  frozen
) -> None:
    """Detect objects in images: write pictures with boxes, names and scores, and detections.json.

    A test option that is not given has the value of the run.

    Parameters
    ----------
    run
        Folder of the run.
    images
        Image files, which may be remote or in archives.
    out
        Folder for the pictures and detections.json.
    score
        Lowest score of a detection that is drawn. The JSON file has all detections.
    jobs
        Number of processes that make proposals; -1 uses all cores.
    """
    from ohem.evaluation.detect import detect_files
    from ohem.io.archives import local_file

    detect_files(run, [local_file(image) for image in images], out, score, test, jobs, devices)


@app.command
def recipes(name: str | None = None, /) -> None:
    """List the recipes with their commands, or print all options of one recipe.

    Parameters
    ----------
    name
        Recipe to print, as YAML for --config.
    """
    print("\n".join(list_recipes()) if name is None else format_recipe(named_recipe(name)).rstrip())
