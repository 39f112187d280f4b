"""What the numba kernels are made of: vector lanes, addresses, threads, the sweeps over a row."""
