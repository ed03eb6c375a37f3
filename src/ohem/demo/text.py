"""What `ohem demo` prints before it starts and at its end. It imports nothing large: the demo begins with it."""

from pathlib import Path

TITLES = {"frcn": "heuristic sampling", "ohem": "OHEM"}
"""Method, which is the name of its run folder -> its title in pictures and tables."""
STEPS = 400
"""Training steps of each method. The recipes have more, since their network begins with random weights."""


def introduce(folder: Path, steps: int, train_images: int, test_images: int) -> None:
    """Prints what the demo does; the arguments are those of `run_demo`."""
    print(
        f"This demo makes {train_images + test_images} scenes with handwritten digits. It pre-trains a small network "
        f"on single digits,\nand trains it to detect them in {train_images} scenes with {TITLES['frcn']} (Fast R-CNN) "
        f"and with {TITLES['ohem']} (online hard\nexample mining), at the same time, {steps} steps each. It compares "
        f"the two on the other {test_images}.\n"
        f"With the default settings it takes 2 to 4 minutes on 2 CPU cores. All files are in {folder}.",
        flush=True,
    )


def summary(folder: Path) -> str:
    """Returns what the demo prints last: what it made in `folder`, and what to do next."""
    image = folder / "data" / "JPEGImages" / "test_00000.jpg"
    return f"""
What the demo made:
  {folder / "pictures"}: test scenes with the ground truth and the detections of both methods
  {folder / "ohem"}, {folder / "frcn"}: the runs, with metrics.csv, eval.json and the checkpoint
  {folder / "pretrained.safetensors"}: the weights that both began with
  {folder / "data"}: the scenes, in the format of PASCAL VOC
What to do next:
  Open a picture in {folder / "pictures"}, and compare the two methods.
  Detect digits in an image: ohem detect {folder / "ohem"} {image} --out {folder / "detections"}
  Compare methods on your own data, with several seeds: see ohem compare --help"""
