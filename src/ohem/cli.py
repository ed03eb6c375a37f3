"""The command line. It imports torch only when a command runs, so that `--help` is quick."""

import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from ohem.bench.methods import BACKBONES, BENCH_METHODS, BenchMethod
from ohem.bootstrap.config import BootstrapConfig
from ohem.config.methods import METHODS
from ohem.config.paper_data import PaperData
from ohem.config.recipes import list_recipes, named_recipe
from ohem.config.renamed import check_arguments
from ohem.config.resolve import DEFAULT_RECIPE, fill_options, format_default, format_recipe
from ohem.config.schema import BackboneName, MetricName, ProposalConfig, Recipe, TestConfig
from ohem.errors import InputError
from ohem.io.console import discard_output, escape_what_the_encoding_lacks, exit_with, format_warning
from ohem.io.files import describe_os_error
from ohem.processes import end_with_parent, share_cores_while_waiting

METHODS_HELP = (
    f"Methods; the others are compared with the first. Known: {', '.join(METHODS)}. A method may have options of its "
    "own after commas: ohem,sampler.nms-iou=0.5"
)
METRIC_HELP = (
    "voc07: 11-point AP; voc10: area under the curve; coco: AP of COCO. Default: voc07 for VOC layout, else coco."
)
Metric = Annotated[MetricName | None, Parameter(help=METRIC_HELP)]

# Help does not show the defaults of these classes: the recipe or the run gives the value of an option.
Settings = Annotated[Recipe, Parameter(name="*", show_default=False)]
RunTest = Annotated[TestConfig, Parameter(show_default=False)]

app = App(
    name="ohem",
    help="Online hard example mining for object detectors (Shrivastava, Gupta and Girshick, CVPR 2016).",
    result_action="return_value",
    config=fill_options,
    default_parameter=Parameter(consume_multiple=True, negative_iterable=(), show_default=format_default),
)
app.register_install_completion_command()


@app.command
def demo(
    folder: Path = Path("runs/demo"), /, *, steps: int | None = None, train_images: int = 160, test_images: int = 80
) -> None:
    """Train with heuristic sampling and with OHEM on generated images, and compare them. Nothing is downloaded.

    Parameters
    ----------
    folder
        Folder for the data, both runs and the pictures.
    steps
        Number of training steps of each method. Default: that of the recipes demo-frcn and demo-ohem.
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
    settings: Annotated[ProposalConfig, Parameter(name="*")] = ProposalConfig(),  # noqa: B008  frozen
) -> None:
    """Make the proposals of data sets by selective search, and keep them with the data.

    Parameters
    ----------
    sources
        One or several data sets, FOLDER:SPLIT, ANNOTATIONS.json:IMAGES or data.yaml:SPLIT.
    negatives
        Folders of --data.negatives.
    """
    from ohem.inputs.propose import make_proposals

    make_proposals(sources, negatives, settings)


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
        evaluate_curve(run, curve, data, metric, test)
        return
    from ohem.evaluation.evaluate import evaluate_run

    evaluate_run(run, data, metric, loss, test, submit, out)


@app.command
def loss(*runs: Path, data: tuple[str, ...] = (), plot: Path | None = None) -> None:
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

    compare_losses(runs, data, plot)


@app.command
def detect(
    run: Path,
    /,
    *images: Path,
    out: Path,
    score: float = 0.5,
    jobs: int = -1,
    test: RunTest = TestConfig(),  # noqa: B008  frozen
) -> None:
    """Detect objects in images: write pictures with boxes, names and scores, and detections.json.

    A test option that is not given has the value of the run.

    Parameters
    ----------
    run
        Folder of the run.
    images
        Image files.
    out
        Folder for the pictures and detections.json.
    score
        Lowest score of a detection that is drawn. The JSON file has all detections.
    jobs
        Number of processes of selective search; -1 uses all cores.
    """
    from ohem.evaluation.detect import detect_files

    detect_files(run, images, out, score, test, jobs)


@app.command
def compare(
    out: Path = Path("runs/compare"),
    /,
    *,
    methods: Annotated[tuple[str, ...], Parameter(help=METHODS_HELP)] = ("frcn", "ohem"),
    seeds: int = 3,
    jobs: int = 1,
    recipe: str = DEFAULT_RECIPE,
    config: Path | None = None,
    metric: Metric = None,
    curve: int = 8,
    settings: Settings = Recipe(),  # noqa: B008  frozen
) -> None:
    """Compare methods on your data: train each with every seed, and print the differences in mAP with 95 % intervals.

    Repeat it to resume. An option that is not given has the value of the recipe; `ohem recipes NAME` prints them.

    Parameters
    ----------
    out
        Folder for the runs (METHOD-SEED), compare.json and compare.html.
    seeds
        Number of runs of each method.
    jobs
        Number of runs at the same time; they share the cores.
    recipe
        Recipe of all methods; `ohem recipes` lists them.
    config
        YAML file with options that replace those of the recipe, nested as in recipe.yaml.
    curve
        Number of points of the curve of mAP against seconds, each with an evaluation and a file of weights; 0: none.
    """
    from ohem.experiments.compare import compare as run_comparison

    run_comparison(out, recipe, settings, methods, seeds, jobs, metric, curve)


@app.command
def reproduce(
    table: Literal["table1", "table2", "table3", "table4", "table5", "table6", "figure3"],
    /,
    *options: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    out: Path = Path("runs/reproduce"),
    small: bool = False,
    data: PaperData = PaperData(),  # noqa: B008  frozen
    networks: tuple[Literal["vggm", "vgg16"], ...] = ("vggm", "vgg16"),
    seeds: int = 1,
    jobs: int = 1,
    dry_run: bool = False,
) -> None:
    """Run the rows of a table or figure of the paper, and print our results next to those of the paper.

    Every option of `ohem train` is allowed, and is used in all trainings. Repeat the command to resume it.

    Parameters
    ----------
    table
        Table or figure of the paper.
    out
        Folder for the runs. The tables share it: a training that two tables need is done once.
    small
        Run small recipes on --data.train and --data.test instead of the recipes of the paper on VOC and COCO.
    networks
        Networks of the paper; vggm needs --model.weights VGG_CNN_M_1024.caffemodel.
    seeds
        Number of runs of each row.
    jobs
        Number of runs at the same time; they share the cores.
    dry_run
        Print the commands and run nothing.
    """
    from ohem.experiments.reproduce import reproduce as run_table

    run_table(
        table, out, data, small=small, networks=networks, seeds=seeds, jobs=jobs, dry_run=dry_run, options=options
    )


@app.command
def bench(
    *,
    backbones: tuple[BackboneName, ...] = BACKBONES,
    methods: tuple[BenchMethod, ...] = BENCH_METHODS,
    steps: int = 5,
    warmup: int = 1,
    sequential: bool = False,
    out: Path | None = None,
    settings: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008  frozen
) -> None:
    """Measure seconds and memory of a training step with and without mining (table 2 of the paper).

    Each method runs in its own process, on the same images and RoIs and from the same weights; the methods take turns.
    The number of threads is that of the environment (OMP_NUM_THREADS).

    Parameters
    ----------
    backbones
        Networks to measure.
    methods
        Heuristic sampling, OHEM with a read-only pass, each also with accumulated gradients, and OHEM in a loss layer.
    steps
        Measured steps of each method.
    warmup
        Steps of each method before the measured ones.
    sequential
        Measure one method after the other instead of in turns. Without it, methods that do not fit into memory with the
        others are measured after them.
    out
        JSON file for all figures.
    """
    from ohem.bench.table2 import run_bench

    run_bench(
        settings, backbones=backbones, methods=methods, steps=steps, warmup=warmup, sequential=sequential, out=out
    )


@app.command
def bootstrap(
    run: Path,
    /,
    *,
    data: tuple[str, ...] = (),
    metric: Metric = None,
    settings: Annotated[BootstrapConfig, Parameter(name="*")] = BootstrapConfig(),  # noqa: B008  frozen
    test: RunTest = TestConfig(),  # noqa: B008  frozen
) -> None:
    """Classic hard negative mining: replace the softmax of a run by an SVM for each class, and evaluate it.

    The features of all training RoIs are kept in RUN/bootstrap/. The SVMs start from all objects and random negatives;
    each round fits them, removes easy negatives and adds negatives that violate the margin. The box regression of the
    run stays. A score is the logistic function of a margin. A test option that is not given has the value of the run.
    Writes RUN/bootstrap/eval.json.

    Parameters
    ----------
    run
        Folder of the run.
    data
        Data sets to evaluate on. Default: --data.test of the run.
    """
    from ohem.bootstrap.run import bootstrap_run

    bootstrap_run(run, data, metric, settings, test)


@app.command
def recipes(name: str | None = None, /) -> None:
    """List the recipes with their commands, or print all options of one recipe.

    Parameters
    ----------
    name
        Recipe to print, as YAML for --config.
    """
    print("\n".join(list_recipes()) if name is None else format_recipe(named_recipe(name)).rstrip())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command: bad input ends in one sentence and exit status 2, a signal in 128 + its number."""
    warnings.formatwarning = format_warning
    escape_what_the_encoding_lacks()
    end_with_parent()
    share_cores_while_waiting()
    try:
        check_arguments(sys.argv[1:] if arguments is None else arguments)
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # else a full disk is noticed only when Python exits
    except (InputError, CycloptsError) as error:
        missing = isinstance(error, MissingArgumentError) and error.argument and error.argument.name
        hint = ": `ohem recipes` lists them" if missing == "--recipe" else ""
        exit_with(f"{error}{hint}")
    except KeyboardInterrupt:
        print(f"ohem: stopped by {signal.SIGINT.name}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # `ohem recipes | head`: Python must not write again at exit
        discard_output()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        exit_with(describe_os_error(error))
