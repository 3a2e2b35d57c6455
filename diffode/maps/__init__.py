"""Flow maps: two-time maps that jump along a field's flow, their networks, files and coordinates."""

from diffode.maps.clock import AngleClock
from diffode.maps.files import load_map, save_map
from diffode.maps.flow_map import FlowMap, FunctionMap, LearnedMap
from diffode.maps.networks import AngleMap
from diffode.maps.parametrisations import PARAMETRISATIONS, Parametrisation, parametrisation

__all__ = [
    "PARAMETRISATIONS",
    "AngleClock",
    "AngleMap",
    "FlowMap",
    "FunctionMap",
    "LearnedMap",
    "Parametrisation",
    "load_map",
    "parametrisation",
    "save_map",
]
