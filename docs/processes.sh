#!/usr/bin/env bash
# bash docs/processes.sh [DIR]: heat dissipation, blurring diffusion, Gaussian diffusion and heat flow matching with the same data,
# network, number of steps and random streams, on the embedded emoji and digits, from the program's own directory. Interrupted, the
# same command continues; a second one, started beside it, takes runs that the first has not begun, which on two cores is the fastest
# (OMP_NUM_THREADS=1 bash docs/processes.sh DIR & twice). PRECISION=bfloat16 samples in that, in half of the time where a processor has
# it. After each run DIR/tables.md has what there is so far.
set -euo pipefail
out=${1:-runs/processes}

# DATA PROCESS SEED [--config...]: train, draw 16 samples at 25 calls, measure at several numbers of calls
arm() {
  local data=$1 process=$2 seed=$3 run=$out/$1/$2-$3 configs=mnist steps=5,10,25,50
  shift 3
  [ ! -e "$run/finished" ] || return 0
  [ "$data" = digits ] || configs=emoji
  [ "$seed" != 1 ] || steps+=,100
  mkdir -p "$run"
  exec 9>"$run/begun"
  flock -n 9 || return 0
  python train.py --config "configs/$configs/quickstart.py" --workdir "$run" --config.seed="$seed" "$@"
  case $process in
    heat) of_heat ;;
    flow_0 | flow_2 | flow_20) steps=10,25,50 distances ;;
    *) distances; of_others ;;
  esac
  python sample.py --workdir "$run" --batch_size=16 --steps=25
  touch "$run/finished"
  PYTHONPATH=. python docs/processes.py "$out" | tee "$out/tables.md"
}
score() { python evaluate.py --workdir "$run" --out "$run/scores" --seed=1 "$@"; }
samples() { score --num_gen=500 --precision="${PRECISION:-float32}" "$@"; }
distance() { samples --mode=fid --feature_extractor=robust_classifier "$@"; }
distances() { for eta in 0 1; do distance --steps="$steps" --eta="$eta"; done; }
of_heat() {
  distance --delta=calibrated --steps=5,10,25,30
  distance --delta=isotropic
  score --mode=elbo --exact --num_images=100 --steps=10,25,30
  pixels
}
of_others() {
  case $process in flow*) distance --steps=3,5,13,25 --sampler=heun --eta=0 ;; esac
  python -m scripts.tools.calibrate --workdir "$run"
  score --mode=elbo --exact --num_images=100 --steps=10,25,50 --delta=posterior,calibrated --eta=1
  pixels
}
pixels() { for mode in spectrum copying; do samples --mode="$mode" --steps=25; done; }

diffusion=(--config.data.uniform_dequantization=False --config.model.K=100)
flow=("${diffusion[@]}" --config.model.process=flow_matching)
for data in emoji digits; do
  for seed in 1 2; do
    arm $data heat $seed
    arm $data flow_8 $seed "${flow[@]}" --config.model.blur_sigma_max=8
    arm $data flow_4 $seed "${flow[@]}" --config.model.blur_sigma_max=4
    arm $data gaussian $seed "${diffusion[@]}" --config.model.process=gaussian_diffusion
    arm $data blurring $seed "${diffusion[@]}" --config.model.process=velocity_blurring_diffusion
  done
  for blur in 0 2 20; do arm $data flow_$blur 1 "${flow[@]}" --config.model.blur_sigma_max=$blur; done
done
