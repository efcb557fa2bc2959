"""Drop-in torch optimizers that carry the constraint: FTP (SGDP, AdamP), SPD (AdamSPD) and DiGraP."""

from tpgm.optim.anchored import AnchoredOptimizer
from tpgm.optim.digrap import DiGraP
from tpgm.optim.ftp import SGDP, AdamP
from tpgm.optim.spd import AdamSPD

__all__ = ["SGDP", "AdamP", "AdamSPD", "AnchoredOptimizer", "DiGraP"]
