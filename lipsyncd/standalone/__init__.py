"""Render without a daemon: `lipsyncd render`, and `render`, `frames` and `check` of the Python package.

    order     what is to be made, from the options of a command or of a call
    session   makes one video after another in a scratch folder, with one render child
    target    where a video goes, and how it gets there whole
    folder    the pairs of a folder
    python    what `import lipsyncd` offers

The functions that prepare inputs, run the child and check its video are the daemon's own. There is no ledger, no queue
and no second attempt: an error goes to the caller.
"""
