"""The paper's experiments, one file a figure: ``chaos-ext reproduce NAME`` runs them.

``settings`` says what a run is, ``unit`` trains one (seed, run) pair and survives being killed, ``pool`` spreads units
over processes, ``output`` guards the output folder, ``report`` turns finished units into CSV, JSON and figures.
"""
