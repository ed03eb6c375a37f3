"""The program, and options that several commands have."""

from typing import Annotated

from cyclopts import App, Parameter

from ohem.config.resolve import fill_options, format_default
from ohem.config.schema import MetricName, Recipe, TestConfig

METRIC_HELP = (
    "voc07: 11-point AP; voc10: area under the curve; coco: AP of COCO. Default: voc07 for VOC layout, else coco."
)
Metric = Annotated[MetricName | None, Parameter(help=METRIC_HELP)]

CLUSTER_HELP = (
    "Address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers do the work and see the same folders; "
    "local: start workers on this machine."
)
Cluster = Annotated[str | None, Parameter(help=CLUSTER_HELP)]

DEVICES_HELP = (
    "Number of processes that share the images, one for each GPU; auto uses every GPU. With torchrun, the processes "
    "that it started."
)
Devices = Annotated[str, Parameter(help=DEVICES_HELP)]

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
