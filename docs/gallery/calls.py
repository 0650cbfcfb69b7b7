"""Draws calls.png, the picture of docs/calibration.md, from the numbers in its table: python
docs/gallery/calls.py.
"""

from pathlib import Path

from matplotlib.figure import Figure

ARMS = {  # (network calls, value, standard error)
    "1.25 sigma, the paper's": ([(98, 6.56, 1.19)], [(98, 11.794, 0.025)]),
    "spectral": ([(102, 2.33, 0.59)], [(102, 6.065, 0.033)]),
    "calibrated, evenly spaced": (
        [(100, 2.30, 0.60), (50, 3.38, 0.64), (25, 7.06, 0.90), (16, 14.85, 1.2)],
        [(100, 6.052, 0.033), (50, 4.788, 0.021), (25, 4.267, 0.016), (16, 4.245, 0.015)],
    ),
    "calibrated, by the bound": (
        [(50, 5.26, 0.74), (25, 9.51, 0.90), (16, 13.62, 1.2)],
        [(50, 4.132, 0.017), (25, 3.998, 0.016), (16, 3.981, 0.016)],
    ),
    "fine-tuned to 25 levels": ([(27, 8.68, 1.3)], [(27, 4.381, 0.017)]),
}
figure = Figure(figsize=(9, 3.6), layout="constrained")
for axes, place, label in zip(
    figure.subplots(1, 2),
    (0, 1),
    ("FID, classifier features, N = 1,000", "bits/dim, held out"),
    strict=True,
):
    for arm, series in ARMS.items():
        axes.errorbar(*zip(*series[place], strict=True), fmt="o-", ms=4, capsize=3, label=arm)
    axes.set(xlabel="network calls", ylabel=label, xlim=(0, 110))
    axes.grid(alpha=0.3)
figure.axes[0].set_ylim(bottom=0)
figure.axes[0].axhline(1.70, color="gray", ls="--", lw=1)
figure.axes[1].legend(fontsize="small", loc="upper left")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
