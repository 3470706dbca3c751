"""MRI physics: operators, solvers, data consistency, masks and coil maps; knows no files, models or pipelines."""
