"""The plain twin of each algorithm, to be read beside its paper; tests hold the fast code to them."""
