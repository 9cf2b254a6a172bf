"""`gala experiment`: a matrix of runs as one document, run to its end and resumable.

    definition   GalaExperiment, as the user writes it
    matrix       definition -> combinations of levels -> documents of runs, each with where its values come from
    naming       combination -> the name of its run
    index        experiment.json, what the report reads
    folder       runs/<experiment>/: files, the lock, what of a run is done already
    conducting   the loop: start what may start, look, record
    machine      runs as `gala run` of this machine
    progress     what is known -> counts and the time left; pure
    table        what the user sees; pure

A cluster's runs are the business of `gala.remote.experiments`, which nothing here imports.
"""
