"""The configuration of a run: frozen, validated before anything heavy starts, stored resolved beside the run.

A method's settings are read by the method's own file (`dist_teracon.continual`), a backbone's by the backbone's (`dist_teracon.models`);
here they are carried as they stand.
"""
