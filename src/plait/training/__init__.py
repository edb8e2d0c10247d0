"""Training beyond `fit`: the gate alone, cross-fitting, EM, pruning, upcycling."""

from plait.training.cross_fitting import CrossFit, cross_fit
from plait.training.em import EMResult, fit_em
from plait.training.gate import fit_gate
from plait.training.gate_choice import GateChoice, choose_gate
from plait.training.part_rates import PartRates
from plait.training.pruning import prune
from plait.training.selection import Selection, choose_num_experts
from plait.training.upcycle import Upcycled, upcycle

__all__ = [
    "CrossFit",
    "EMResult",
    "GateChoice",
    "PartRates",
    "Selection",
    "Upcycled",
    "choose_gate",
    "choose_num_experts",
    "cross_fit",
    "fit_em",
    "fit_gate",
    "prune",
    "upcycle",
]
