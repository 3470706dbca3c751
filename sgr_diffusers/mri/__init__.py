"""MRI physics: operators, solvers, masks, coil maps and files; knows nothing of models or pipelines."""
