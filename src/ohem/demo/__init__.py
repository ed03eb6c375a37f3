"""The demo: both methods on generated scenes."""

from pathlib import Path

from ohem.demo.text import introduce


def run_demo(folder: Path, *, steps: int, train_images: int, test_images: int) -> None:
    """Trains and evaluates both methods on generated scenes, prints their AP and draws detections.

    Args:
        folder: folder for the data, the runs frcn/ and ohem/, and the pictures.
        steps: number of training steps of each method.
        train_images: number of scenes to train on.
        test_images: number of scenes to test on.
    """
    introduce(folder, steps, train_images, test_images)
    from ohem.demo.run import make_demo  # now, since it imports torch, which takes seconds

    make_demo(folder, steps, train_images, test_images)
