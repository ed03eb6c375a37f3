"""Commands that explain what a detector gets wrong, and what to do about it."""

from pathlib import Path

from ohem.cli.app import Cluster, RunTest, Settings, app
from ohem.config.schema import Recipe, TestConfig
from ohem.errors import InputError


@app.command
def hard(
    run: Path | None = None,
    /,
    *,
    data: tuple[str, ...] = (),
    detections: Path | None = None,
    out: Path | None = None,
    score: float = 0.1,
    most: int = 1000,
    draw: int = 48,
    test: RunTest = TestConfig(),  # noqa: B008  frozen
) -> None:
    """Find the hardest false positives of a detector, for a second round of training (offline hard negatives).

    Writes hard.json, which `ohem train --data.negatives` takes, and pictures: hardest.jpg; pictures/, with boxes; and
    regions/, where all but the false positives is grey, for detectors that make their own proposals.

    Parameters
    ----------
    run
        Folder of the run. A test option that is not given has the value of the run.
    data
        Data sets, or folders of images without an object. Default: --data.train of the run.
    detections
        Detections of any detector instead of a run, a JSON list of image_id, category_id, bbox and score (COCO).
    out
        Folder for the results. Default: RUN/hard.
    score
        Lowest score of a false positive.
    most
        Highest number of false positives, those of the highest scores.
    draw
        Number of false positives that are drawn.
    """
    from ohem.insight.hard import find_hard_negatives

    find_hard_negatives(run, data, detections, out, score=score, most=most, draw=draw, test=test)


@app.command
def report(*runs: Path, data: tuple[str, ...] = (), detections: Path | None = None, out: Path | None = None) -> None:
    """Show what runs mined and what they get wrong, on one page: report.html, and report.json.

    Several runs are compared with the first.

    Parameters
    ----------
    runs
        Folders of runs, or with --detections of any training with a mining log.
    data
        Data sets to test on. Default: --data.test of each run.
    detections
        Detections in the images of --data, instead of those of the run: a JSON list of image_id, category_id, bbox and
        score (COCO).
    out
        The page. Default: report.html in the folder of the first run. The JSON file has the same name.
    """
    from ohem.insight.report import make_report

    make_report(runs, data, detections, out)


@app.command
def audit(
    *sources: str,
    out: Path | None = None,
    recipe: str | None = None,
    config: Path | None = None,
    folds: int = 3,
    jobs: int = 1,
    cluster: Cluster = None,
    run: Path | None = None,
    detections: Path | None = None,
    apply: Path | None = None,
    pictures: int = 300,
    settings: Settings = Recipe(),  # noqa: B008  frozen
) -> None:
    """Find suspect annotations, most suspect first, by detectors that did not see them. Repeat it to resume.

    Writes audit.json, audit.csv, and audit.html, a page to go through them. An option of the trainings that is not
    given has the value of the recipe.

    Parameters
    ----------
    sources
        One or several data sets, FOLDER:SPLIT, ANNOTATIONS.json:IMAGES or data.yaml:SPLIT.
    out
        Folder for the results and the runs of the folds. Default: runs/audit; with --apply, runs/corrected.
    recipe
        Recipe to train a detector with for each fold, on the images of the other folds.
    config
        YAML file with options that replace those of the recipe, nested as in recipe.yaml.
    folds
        Number of folds.
    jobs
        Number of trainings at the same time; they share the cores.
    run
        Folder of a run to use instead of folds. If it was trained on the data, its mining log is also used.
    detections
        JSON file of results in COCO's format to use instead of folds: of any detector.
    apply
        File of decisions that the page saved: write corrected annotations into a new folder.
    pictures
        Highest number of suspects in the page.
    """
    if apply is not None:
        from ohem.insight.suspects.decisions import apply_decisions

        if sources or recipe is not None or run is not None or detections is not None:
            raise InputError("--apply reads the data that the decisions name: leave out SOURCE and the other options")
        apply_decisions(apply, out or Path("runs/corrected"))
        return
    from ohem.insight.suspects.command import Judge, audit_annotations

    audit_annotations(
        sources, out or Path("runs/audit"), Judge(recipe, run, detections), settings, folds, jobs, pictures, cluster
    )
