"""Random trials of diffode: runs, damaged files and odd command lines, each reproduced from (seed, kind, number)."""
