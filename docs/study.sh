#!/usr/bin/env bash
# bash docs/study.sh [DIR]: terminal blur 14 and 3.5 pixels by levels spaced "log" and "matched", training seeds 1 and 2, on the
# embedded digits. Eight trainings of two to three minutes and their scores, an hour on one core of a laptop; interrupted, the same
# command goes on. From the program's own directory; docs/your_own_study.md discusses what comes out.
set -euo pipefail
out=${1:-runs/study}
for seed in 1 2; do for blur in 14 3.5; do for levels in log matched; do
  run=$out/blur_${blur}_${levels}_seed_$seed
  [ ! -e "$run/finished" ] || continue
  python train.py --config configs/mnist/quickstart.py --workdir "$run" --config.seed="$seed" \
    --config.training.n_iters=600 --config.model.blur_sigma_max="$blur" --config.model.blur_schedule="$levels"
  evaluate() { python evaluate.py --workdir "$run" --experiment_name="study/$(basename "$run")" --seed=1 "$@"; }
  evaluate --mode=elbo --num_images=250 --exact
  evaluate --mode=fid --feature_extractor=classifier --num_gen=300
  for mode in spectrum copying; do evaluate --mode="$mode" --num_gen=300; done
  evaluate --mode=diversity --num_gen=300 --per_init=10
  python sample.py --workdir "$run" --batch_size=16
  touch "$run/finished"
done; done; done
python -m scripts.tools.compare "$out"/blur_*/ --out "$out/compared"
