"""Names of the studies' labels in prose, tables and figures."""

from __future__ import annotations

from tpgm.book.experiments.icon_studies import DEFAULTS

# what ends in -bn trains BatchNorm's statistics with the other settings
DISPLAY = {
    "linear-probe": "Linear probe",
    "vanilla": "Vanilla",
    "vanilla-bn": "Vanilla + BatchNorm",
    "lp-ft": "LP-FT",
    "lp-ft-bn": "LP-FT + BatchNorm",
    "wise-ft": "WiSE-FT",
    "wise-ft-bn": "WiSE-FT + BatchNorm",
    "l2-sp": "L2-SP",
    "ftp": "FTP",
    "spd": "SPD",
    "lines": "LiNeS",
    "one ratio": "One ratio",
    "one ratio, 1 SE": "One ratio, 1 SE",
    "probe-anchored": "One ratio, probed head",
    "probe-anchored, 1 SE": "One ratio, probed head, 1 SE",
    "start weights": "Pre-trained model",
    "tpgm": "TPGM at every step",
    "tpgm-late": "TPGM in the last fifth",
    "tpgm-w": "TPGM at every step, by weight",
    "tpgm-end": "TPGM at the end",
    "tpgm-end-w": "TPGM at the end, by weight",
    "tpgm-end-bn": "TPGM at the end + BatchNorm",
    "tpgm-end-bn-w": "TPGM at the end, by weight + BatchNorm",
    "auto-rgn": "Auto-RGN",
    "digrap": "DiGraP",
    "mars-sp": "MARS-SP",
    # the candidates for the default
    **{
        label: label.replace("one ratio", "One ratio")
        .replace("probe-anchored", "One ratio, probed head")
        .replace("lr=", "rate ")
        for label in DEFAULTS
    },
}
