"""The command line. Imports only what parsing needs: torch waits until a command runs, so `--help` is quick."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import App, ArgumentCollection, CycloptsError, Parameter
from cyclopts.config import Dict

from ohem.errors import InputError
from ohem.experiments.bootstrap.config import BootstrapConfig
from ohem.training.recipes import RECIPES, ProposalConfig, Recipe, TestConfig

Metric = Literal["voc07", "voc10", "coco"]
TESTING = {("eval",), ("detect",), ("bootstrap",)}


def _defaults(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fills the options that the line leaves open: from the --config file, then from the recipe or that of the run."""
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    if "--config" in given:
        path = Path(given["--config"])
        Dict(_read_yaml(path), source=str(path), use_commands_as_keys=False)(app, commands, arguments)
    if "--recipe" in given:
        Dict(_set_values(asdict(_named(given["--recipe"]))), use_commands_as_keys=False)(app, commands, arguments)
    elif commands in TESTING and "RUN" in given:
        from ohem.training.runs import read_run

        trained = {"test": _set_values(asdict(read_run(Path(given["RUN"])).test))}
        Dict(trained, use_commands_as_keys=False)(app, commands, arguments)


app = App(
    name="ohem",
    help="Online hard example mining for object detectors (Shrivastava, Gupta and Girshick, CVPR 2016).",
    result_action="return_value",
    config=_defaults,
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)


@app.command
def demo(
    folder: Path = Path("runs/demo"), /, *, steps: int | None = None, train_images: int = 160, test_images: int = 80
) -> None:
    """Train with heuristic sampling and with OHEM on generated scenes, side by side. Nothing to download.

    Parameters
    ----------
    folder
        Gets data/, frcn/, ohem/ and the pictures.
    steps
        Training steps of each arm, in place of the recipe's.
    train_images, test_images
        Scenes to generate.
    """
    from ohem.demo import run_demo

    run_demo(folder, steps=steps, train_images=train_images, test_images=test_images)


@app.command
def propose(
    *sources: str,
    settings: Annotated[ProposalConfig, Parameter(name="*")] = ProposalConfig(),  # noqa: B008  frozen
) -> None:
    """Make the proposals of data sets (selective search), cached beside the data.

    Parameters
    ----------
    sources
        FOLDER:SPLIT or ANNOTATIONS.json:IMAGES, one or several.
    """
    from ohem.training.build import build_data, build_proposals

    data = [build_data([source], (), "ohem propose") for source in sources] or [build_data((), (), "ohem propose")]
    for each in data:
        build_proposals(each, settings)


@app.command
def train(
    run: Path,
    /,
    *,
    recipe: str,
    config: Path | None = None,
    devices: str | None = None,
    settings: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008  frozen
) -> None:
    """Train a detector into the folder RUN; the same line goes on where it stopped.

    Parameters
    ----------
    run
        Folder of the run: recipe.yaml, metrics.csv and the checkpoints.
    recipe
        Named recipe that gives every option below its value; `ohem recipes` lists them.
    config
        YAML file that overrides the recipe: the options below, nested as they are named.
    devices
        Short for --run.devices.
    """
    from ohem.training.start import start

    start(run, recipe, settings, devices)


@app.command(name="eval")
def evaluate(
    run: Path,
    /,
    *,
    data: tuple[str, ...] = (),
    metric: Metric | None = None,
    loss: bool = False,
    submit: Path | None = None,
    test: TestConfig = TestConfig(),  # noqa: B008  frozen
) -> None:
    """Evaluate a run: print a table and write RUN/eval.json, for COCO data also RUN/detections.json.

    Parameters
    ----------
    run
        Folder of the run.
    data
        Data sets, as in training; those of its --data.test if not given.
    metric
        11-point AP of VOC2007, area under the curve of VOC2010, or COCO's AP and AR; by default the data's own.
    loss
        Also the mean loss per RoI over all RoIs of the training images (the paper's figure 3).
    submit
        Folder that gets the result files of the VOC server, comp4_det_test_CLASS.txt; annotations may be missing. Not
        for COCO data.
    test
        As the run's recipe has it where not given.
    """
    from ohem.training.evaluate import evaluate_run

    evaluate_run(run, data, metric, loss, test, submit)


@app.command
def detect(
    run: Path,
    /,
    *images: Path,
    out: Path,
    score: float = 0.5,
    test: TestConfig = TestConfig(),  # noqa: B008  frozen
) -> None:
    """Detect in pictures: writes them with boxes, names and scores, and detections.json.

    Parameters
    ----------
    run
        Folder of the run.
    images
        Picture files.
    out
        Folder of what is written.
    score
        Lowest score of a box that is drawn; the JSON file has them all.
    test
        As the run's recipe has it where not given.
    """
    from ohem.training.detect import detect_files

    detect_files(run, images, out, score, test)


@app.command
def bootstrap(
    run: Path,
    /,
    *,
    data: tuple[str, ...] = (),
    metric: Metric | None = None,
    settings: Annotated[BootstrapConfig, Parameter(name="*")] = BootstrapConfig(),  # noqa: B008  frozen
    test: TestConfig = TestConfig(),  # noqa: B008  frozen
) -> None:
    """Classic hard negative mining: an SVM per class on the features of a run, in place of its softmax, evaluated.

    Features of all training RoIs are cached in RUN/bootstrap/. Starting from all objects and random negatives, each
    round fits the SVMs, drops the easy negatives and harvests those that violate the margin. The run's own box
    regression stays. Writes RUN/bootstrap/eval.json.

    Parameters
    ----------
    run
        Folder of the run.
    data, metric
        As for `ohem eval`.
    test
        As the run's recipe has it where not given; scores are the logistic function of the SVMs' margins.
    """
    from ohem.experiments.bootstrap.run import bootstrap_run

    bootstrap_run(run, data, metric, settings, test)


@app.command
def recipes() -> None:
    """List the recipes: the command of each, the paper's mAP, and ours where measured."""
    for name, entry in RECIPES.items():
        figures = [f"paper {entry.paper}" if entry.paper else "", f"ours {entry.ours}" if entry.ours else ""]
        print(f"{name:20}{entry.about}", *(f"mAP {figure}" for figure in figures if figure), sep=", ")
        print(f"    {entry.command(name)}")


def main(tokens: Sequence[str] | None = None) -> None:
    """Entry point: bad input ends in one sentence and exit status 2, a signal in 128 + its number."""
    warnings.formatwarning = _one_line
    try:
        app(tokens, exit_on_error=False, print_error=False)
    except (InputError, CycloptsError) as error:
        print(f"ohem: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:
            raise
        print(f"ohem: {error.filename}: {error.strerror}: choose another place, or make room", file=sys.stderr)
        raise SystemExit(2) from None


def _named(recipe: str) -> Recipe:
    if recipe not in RECIPES:
        near = get_close_matches(recipe, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else "`ohem recipes` lists them"
        raise InputError(f"--recipe {recipe} is unknown: {hint}")
    return RECIPES[recipe].recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: correct --config, or leave it out") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not well-formed YAML ({error}): correct it") from error
    return content


def _set_values(tree: dict[str, Any]) -> dict[str, Any]:
    """The nested options that have a value; lists in place of tuples."""
    values = {key: _set_values(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None and v != ()}


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """How a warning is shown: a person needs neither the line of our code nor its text."""
    return f"ohem: warning: {' '.join(str(message).split())}\n"


if __name__ == "__main__":
    main()
