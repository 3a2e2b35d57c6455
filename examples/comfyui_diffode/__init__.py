"""Custom nodes for ComfyUI: diffode's samplers, universal tables and grids. Copy this folder into ComfyUI's ``custom_nodes``.

ComfyUI's Python needs diffode (``pip install diffode``). The samplers of ``MENU`` also appear in the menu of the usual
KSampler, as ``diffode_...``.
"""

from .nodes import MENU, NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, add_to_menus

__all__ = ["MENU", "NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

add_to_menus()
