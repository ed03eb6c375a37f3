"""Commands for several trainings: comparisons, the tables of the paper, measurements of a step."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ohem.bench.methods import BACKBONES, BENCH_METHODS, BenchMethod
from ohem.bootstrap.config import BootstrapConfig
from ohem.cli.app import Cluster, Metric, RunTest, Settings, app
from ohem.config.methods import METHODS
from ohem.config.paper_data import PaperData
from ohem.config.resolve import DEFAULT_RECIPE
from ohem.config.schema import BackboneName, Recipe, TestConfig

METHODS_HELP = (
    f"Methods; the others are compared with the first. Known: {', '.join(METHODS)}. A method may have options of its "
    "own after commas: ohem,sampler.nms-iou=0.5"
)


@app.command
def compare(
    out: Path = Path("runs/compare"),
    /,
    *,
    methods: Annotated[tuple[str, ...], Parameter(help=METHODS_HELP)] = ("frcn", "ohem"),
    seeds: int = 3,
    jobs: int = 1,
    cluster: Cluster = None,
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

    run_comparison(out, recipe, settings, methods, seeds, jobs, metric, curve, cluster)


@app.command
def reproduce(
    table: Literal["table1", "table2", "table3", "table4", "table5", "table6", "figure3", "categories"],
    /,
    *options: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    out: Path = Path("runs/reproduce"),
    small: bool = False,
    data: PaperData = PaperData(),  # noqa: B008  frozen
    networks: tuple[Literal["vggm", "vgg16"], ...] = ("vggm", "vgg16"),
    seeds: int = 1,
    jobs: int = 1,
    cluster: Cluster = None,
    dry_run: bool = False,
) -> None:
    """Run the rows of a table or figure of the paper, and print our results next to those of the paper.

    `categories` is the study by class that the paper leaves as future work: the gain of each class against its number
    of objects, their size, the background that resembles it, and its share of what is mined.

    Every option of `ohem train` is allowed, and is used in all trainings. Repeat the command to resume it.

    Parameters
    ----------
    table
        Table or figure of the paper, or categories.
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
        table,
        out,
        data,
        small=small,
        networks=networks,
        seeds=seeds,
        jobs=jobs,
        cluster=cluster,
        dry_run=dry_run,
        options=options,
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

    The features of all training RoIs are kept in RUN/bootstrap/, or those of crops (--crops, R-CNN) in RUN/crops/. The
    SVMs start from all objects and random negatives; each round fits them, removes easy negatives and adds negatives
    that violate the margin. The box regression of the run stays; that of crops is fitted to their features. A score is
    the logistic function of a margin. A test option that is not given has the value of the run. Writes eval.json there.

    Parameters
    ----------
    run
        Folder of the run.
    data
        Data sets to evaluate on. Default: --data.test of the run.
    """
    from ohem.bootstrap.run import bootstrap_run

    bootstrap_run(run, data, metric, settings, test)
