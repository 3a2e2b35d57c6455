"""Pictures for papers, notebooks and reports.

Every function draws on the axes given as ``ax=``, or on new ones of a ``size`` in inches, and returns them; :func:`save` writes
PNG, PDF or SVG. Colours stay apart for colour-blind eyes, and markers and dashes tell curves apart without them.
"""

from diffode.plot.animation import animate
from diffode.plot.appearance import PALETTE, SIZES, Look, look, looks, style
from diffode.plot.curves import error_curves, losses
from diffode.plot.files import save
from diffode.plot.memory import memories
from diffode.plot.run import trajectories
from diffode.plot.scales import robust_limits
from diffode.plot.space import Window, cloud, density, images, window_of
from diffode.plot.tables import stability, tableau

__all__ = [
    "PALETTE",
    "SIZES",
    "Look",
    "Window",
    "animate",
    "cloud",
    "density",
    "error_curves",
    "images",
    "look",
    "looks",
    "losses",
    "memories",
    "robust_limits",
    "save",
    "stability",
    "style",
    "tableau",
    "trajectories",
    "window_of",
]
