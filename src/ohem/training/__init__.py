"""Training: named recipes, a visible step loop, exact resumption, and the evaluation of a run."""
