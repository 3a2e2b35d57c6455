"""The exact flow of a field, as values with error estimates and as a differentiable map with a time for every row.

``reference`` gives the values, ``flow`` the map, an :class:`ExactFlow`, which is the exact counterpart of a network that jumps
from x at time s to time t.
"""

from diffode.flows.differentiable import ExactFlow, flow
from diffode.flows.exact import Reference, flow_states, reference
from diffode.flows.rounding import reachable

__all__ = ["ExactFlow", "Reference", "flow", "flow_states", "reachable", "reference"]
