"""What teaches by trajectories: the exact flow in few dimensions, and a published table where that costs too much."""

from __future__ import annotations

#: Largest number of dimensions in which trajectories are exact whatever their number.
FEW_DIMENSIONS = 3
#: Solver, grid and number of evaluations of the table, which errs by a hundredth of the scale on digits-gmm10.
TABLE, GRID, EVALUATIONS = "ipndm:order=4", "shift:s=1", 24
