"""TPGM-C (Tian et al., CVPR 2023, arXiv 2303.10720): the penalty ``μ Σ γ²`` trades ID for OOD accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tpgm.methods.base import register, setting
from tpgm.methods.tpgm_end import TPGMEnd


@register
@dataclass(frozen=True, kw_only=True)
class TPGMC(TPGMEnd):
    """TPGM at the end, with a penalty on the radii; the form of the penalty is this project's reading of the paper."""

    name: ClassVar[str] = "tpgm-c"
    about: ClassVar[str] = "tpgm-end with a penalty on the radii, to trade ID for OOD accuracy (arXiv 2303.10720)"

    penalty: float = setting(1e-2, "μ of μ Σ γ²")
