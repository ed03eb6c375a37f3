"""`ohem propose`: makes the proposals of data sets in advance."""

from collections.abc import Sequence
from contextlib import nullcontext

from ohem.config.schema import ProposalConfig
from ohem.config.validation import check_methods, check_ranges, is_region_file
from ohem.errors import InputError
from ohem.inputs.datasets import open_data
from ohem.inputs.proposals import build_proposals
from ohem.proposals.parallel import proposed_on


def make_proposals(
    sources: Sequence[str], negatives: Sequence[str], config: ProposalConfig, cluster: str | None = None
) -> None:
    """Makes the proposals of `sources` and of the folders `negatives`, and reads them once.

    The workers of the Dask scheduler at the address `cluster` make them, as `ohem.cluster.executor_on` takes it.

    Raises:
        InputError: there is no source, the data cannot be used, or proposals are damaged.
    """
    check_ranges(config, "proposals.")
    check_methods(config, "--")
    if "none" in config.mode:
        raise InputError("--mode none makes no proposals: give fast, quality or edge-boxes")
    if "sliding" in config.mode:
        raise InputError("--mode sliding has nothing to make in advance: its windows are made when an image is used")
    data = [open_data([source], (), "ohem propose") for source in sources] or [open_data((), (), "ohem propose")]
    data[-1].add_negatives([place for place in negatives if not is_region_file(place)])
    with nullcontext() if cluster is None else proposed_on(cluster, config.jobs):
        for dataset in data:
            proposals = build_proposals(dataset, config)
            for name in dataset.ids:
                proposals[name]  # raises `InputError` if they are damaged
