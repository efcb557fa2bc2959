"""How weights are passed over: devices, threads, processes and memory. Nothing here is public."""
