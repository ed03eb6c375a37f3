"""The command line. Imports only what parsing needs: torch waits until a command runs, so `--help` is quick."""

import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import yaml
from cyclopts import App, ArgumentCollection, CycloptsError, MissingArgumentError, Parameter
from cyclopts.config import Dict

from ohem.errors import InputError
from ohem.experiments.bench.arms import ARMS, BACKBONES, Arm
from ohem.experiments.bootstrap.config import BootstrapConfig
from ohem.experiments.place import Place
from ohem.files import describe_os_error
from ohem.processes import end_with_parent
from ohem.training.config import Backbone, Metric, ProposalConfig, Recipe, TestConfig
from ohem.training.recipes import RECIPES
from ohem.training.signals import run_interruptible
from ohem.training.variants import VARIANTS

TESTING = {("eval",), ("detect",), ("bootstrap",)}
EXPERIMENTS = {("compare",)}
DEFAULT_RECIPE = "small-frcn"
ARMS_HELP = (
    f"Ways of training, the first of which is what the others are compared with: {', '.join(VARIANTS)}; or one with "
    "options of its own, ohem,sampler.nms-iou=0.5"
)


def _defaults(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fills the options that the line leaves open: from the --config file, then from the recipe or that of the run."""
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    if "--config" in given:
        path = Path(given["--config"])
        Dict(_read_yaml(path), source=str(path), use_commands_as_keys=False)(app, commands, arguments)
    if "--recipe" in given:
        Dict(_set_values(asdict(_named(given["--recipe"]))), use_commands_as_keys=False)(app, commands, arguments)
    elif commands in EXPERIMENTS:
        Dict(_set_values(asdict(_named(DEFAULT_RECIPE))), use_commands_as_keys=False)(app, commands, arguments)
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
    from ohem.training.ranges import check_ranges

    check_ranges(settings, "proposals.")
    if settings.mode == "none":
        raise InputError("--mode none makes no proposals: give fast or quality")
    data = [build_data([source], (), "ohem propose") for source in sources] or [build_data((), (), "ohem propose")]
    for each in data:
        proposals = build_proposals(each, settings)
        for name in each.ids:
            proposals[name]  # raises where they are damaged


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
    out: Path | None = None,
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
    out
        File to write in place of RUN/eval.json.
    test
        As the run's recipe has it where not given.
    """
    from ohem.training.evaluate import evaluate_run

    evaluate_run(run, data, metric, loss, test, submit, out)


@app.command
def loss(*runs: Path, data: tuple[str, ...] = (), plot: Path | None = None) -> None:
    """Compare runs by the mean loss over all RoIs at every snapshot (the paper's figure 3): a table, RUN/loss_all.csv.

    Parameters
    ----------
    runs
        Folders of one or several runs, trained with --run.snapshot-every or --run.loss-every; of one without, only the
        newest checkpoint is measured. What RUN/loss_all.csv has of the same weights and data is not measured again.
    data
        Data sets, as in training; those that each run was trained on if not given.
    plot
        .svg or .png file that gets a chart of all runs; runs named alike but for a trailing -SEED are drawn as one arm.
    """
    from ohem.experiments.all_rois import compare_losses

    compare_losses(runs, data, plot)


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
def compare(
    out: Path = Path("runs/compare"),
    /,
    *,
    arms: Annotated[tuple[str, ...], Parameter(help=ARMS_HELP)] = ("frcn", "ohem"),
    seeds: int = 3,
    jobs: int = 1,
    recipe: str = DEFAULT_RECIPE,
    config: Path | None = None,
    metric: Metric | None = None,
    settings: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008  frozen
) -> None:
    """Does mining help on my data? Trains each arm with each seed, and tells the difference and how sure it is.

    The same line goes on where it stopped.

    Parameters
    ----------
    out
        Folder that gets the runs, ARM-SEED, compare.json and compare.html.
    seeds
        Runs of each arm.
    jobs
        Runs at once; the cores are shared among them.
    recipe
        Named recipe that gives every option below its value in all arms.
    config
        YAML file that overrides the recipe: the options below, nested as they are named.
    metric
        11-point AP of VOC2007, area under the curve of VOC2010, or COCO's AP; by default the data's own.
    """
    from ohem.experiments.compare import compare as run_compare

    run_compare(out, recipe, settings, arms, seeds, jobs, metric, _recipe_of)


@app.command
def reproduce(
    table: Literal["table1", "table2", "table3", "table4", "table5", "table6", "figure3"],
    /,
    *extra: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    out: Path = Path("runs/reproduce"),
    small: bool = False,
    data: Place = Place(),  # noqa: B008  frozen
    networks: tuple[Literal["vggm", "vgg16"], ...] = ("vggm", "vgg16"),
    seeds: int = 1,
    jobs: int = 1,
    dry_run: bool = False,
) -> None:
    """Run the rows of a table or figure of the paper, and print ours beside the paper's.

    Any option of `ohem train` goes to every training. The same line goes on where it stopped.

    Parameters
    ----------
    table
        Of the paper.
    out
        Folder of the runs, which the tables share: a training that two of them need is done once.
    small
        The small recipes, on --data.train and --data.test, in place of the paper's on VOC and COCO.
    networks
        Of those that the paper has; vggm needs --model.weights VGG_CNN_M_1024.caffemodel.
    seeds
        Runs of each row.
    jobs
        Runs at once; the cores are shared among them.
    dry_run
        Print the lines, and do nothing.
    """
    from ohem.experiments.reproduce import reproduce as run_table

    run_table(
        table,
        out,
        data,
        small=small,
        networks=networks,
        seeds=seeds,
        jobs=jobs,
        dry_run=dry_run,
        extra=extra,
        parse=_recipe_of,
    )


@app.command
def bench(
    *,
    backbones: tuple[Backbone, ...] = BACKBONES,
    arms: tuple[Arm, ...] = ARMS,
    steps: int = 5,
    warmup: int = 1,
    apart: bool = False,
    out: Path | None = None,
    settings: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008  frozen
) -> None:
    """Seconds and memory of a training step, with and without mining (the paper's table 2): prints a table.

    Every arm is a process of its own and trains on the same images and RoIs from the same weights; they take turns.
    The threads are those of the environment (OMP_NUM_THREADS).

    Parameters
    ----------
    backbones
        Networks, one after the other.
    arms
        Heuristic sampling, OHEM by a read-only pass, each also with accumulated gradients, and OHEM by a loss layer.
    steps
        Steps of each arm to report.
    warmup
        Steps of each arm before.
    apart
        Measure one arm after the other, not in turns: if memory does not hold all of them side by side.
    out
        JSON file of all figures.
    """
    from ohem.experiments.bench.table2 import run_bench

    run_bench(settings, backbones=backbones, arms=arms, steps=steps, warmup=warmup, apart=apart, out=out)


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
        print(name, entry.about, *(f"mAP {figure}" for figure in figures if figure), sep=", ")
        print(f"    {entry.command(name)}")


def main(tokens: Sequence[str] | None = None) -> None:
    """Entry point: bad input ends in one sentence and exit status 2, a signal in 128 + its number."""
    warnings.formatwarning = _one_line
    _print_every_character()
    end_with_parent()
    try:
        app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # or a full disk is noticed only when Python exits
    except (InputError, CycloptsError) as error:
        missing = isinstance(error, MissingArgumentError) and error.argument and error.argument.name
        hint = ": `ohem recipes` lists them" if missing == "--recipe" else ""
        _exit_with(f"{error}{hint}")
    except KeyboardInterrupt:
        print(f"ohem: stopped by {signal.SIGINT.name}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # `ohem recipes | head`: nobody reads on, and Python must not try once more at exit
        _drop_output()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        _exit_with(describe_os_error(error))


def _print_every_character() -> None:
    """Makes a terminal or file of another encoding than UTF-8 show escapes of the characters that it cannot hold."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # in a test it is none
        sys.stdout.reconfigure(errors="backslashreplace")


def _exit_with(sentence: str) -> NoReturn:
    print(f"ohem: {' '.join(sentence.split())}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    raise SystemExit(2) from None


def _drop_output() -> None:
    """Keeps Python from writing what is left of the output at exit."""
    with suppress(OSError):  # in a test stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _recipe_of(line: Sequence[str]) -> Recipe:
    """The settings that the words of an `ohem train` line give."""
    _, bound, _ = app.parse_args(line, exit_on_error=False, print_error=False)
    settings: Recipe = bound.arguments.get("settings", Recipe())
    return settings


def _named(recipe: str) -> Recipe:
    if recipe not in RECIPES:
        near = get_close_matches(recipe, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else "`ohem recipes` lists them"
        raise InputError(f"--recipe {recipe} is unknown: {hint}")
    return RECIPES[recipe].recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] | Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: correct --config, or leave it out") from error
    except OSError as error:
        raise InputError(f"--config {describe_os_error(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not well-formed YAML ({error}): correct it") from error
    if not content or not isinstance(content, dict):
        raise InputError(f"{path} holds no options by their names: write them nested, as recipe.yaml of a run has them")
    for group in (field.name for field in fields(Recipe)):
        if not isinstance(content.get(group, {}), dict):
            raise InputError(f"{path}: {group} is a group of options: write them below it, as in recipe.yaml of a run")
    return content


def _set_values(tree: dict[str, Any]) -> dict[str, Any]:
    """The nested options that have a value; lists in place of tuples."""
    values = {key: _set_values(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None and v != ()}


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """How a warning is shown: a person needs neither the line of our code nor its text."""
    return f"ohem: warning: {' '.join(str(message).split())}\n"


if __name__ == "__main__":
    run_interruptible(lambda: main)
