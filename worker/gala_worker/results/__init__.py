"""The end of a run in a cluster, where every learner has a disk of its own: `python -m gala_worker.results`.

__main__     signals and exit codes
gathering    the main path: fetch, average and evaluate, serve
collecting   fetching from the learners
archive      the run's folder as a tar
server       the HTTP face
"""
