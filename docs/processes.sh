#!/usr/bin/env bash
# bash docs/processes.sh [DIR]: heat dissipation, blurring diffusion, Gaussian diffusion and heat flow matching with the same data,
# network, number of steps and random streams, on the embedded emoji and digits, from the program's own directory. Interrupted, the
# same command continues; a second one, started beside it, takes runs that the first has not begun, which on two cores is the fastest
# (OMP_NUM_THREADS=1 bash docs/processes.sh DIR & twice). PRECISION=bfloat16 samples in that, in half of the time where a processor has
# it. After each run DIR/tables.md has what there is so far.
set -euo pipefail
out=${1:-runs/processes}

# DATA[_STEPS] PROCESS[_BLUR] SEED: train, for 1,600 steps if not said, measure, draw 16 samples; of other lengths, and of other blurs
# than 8 pixels, the distances at 25 calls alone
arm() {
  local data=$1 process=$2 seed=$3 run=$out/$1/$2-$3 configs=mnist steps=5,10,25,50 heun=3,5,13,25 heat=5,10,25,30
  local settings=(--config.seed="$seed")
  [ ! -e "$run/finished" ] || return 0
  case $data in emoji*) configs=emoji ;; esac
  case $data in *_*) settings+=(--config.training.n_iters="${data#*_}") ;; esac
  case $process in
    heat) ;;
    *) settings+=(--config.data.uniform_dequantization=False --config.model.K=100) ;;
  esac
  case $process in
    blurring) settings+=(--config.model.process=velocity_blurring_diffusion) ;;
    gaussian) settings+=(--config.model.process=gaussian_diffusion) ;;
    flow_*) settings+=(--config.model.process=flow_matching --config.model.blur_sigma_max="${process#flow_}") ;;
  esac
  [ "$seed" != 1 ] || steps+=,100
  case $data-$process in
    *_*-* | *-flow_[024] | *-flow_20) steps=25 heun=13 heat=25 ;;
  esac
  mkdir -p "$run"
  exec 9>"$run/begun"
  flock -n 9 || return 0
  python train.py --config "configs/$configs/quickstart.py" --workdir "$run" "${settings[@]}"
  case $process in
    heat) distance --delta=calibrated --steps=$heat ;;
    *) for eta in 0 1; do for sampler in multistep reverse; do distance --steps="$steps" --eta=$eta --sampler=$sampler; done; done ;;
  esac
  case $process in flow_*) distance --steps=$heun --sampler=heun --eta=0 ;; esac
  [ "$steps" = 25 ] || everything_else
  case $process in
    heat) python sample.py --workdir "$run" --batch_size=16 --steps=25 ;;
    *) python sample.py --workdir "$run" --batch_size=16 --steps=25 --eta=1 --sampler=multistep ;;
  esac
  touch "$run/finished"
  PYTHONPATH=. python docs/processes.py "$out" | tee "$out/tables.md"
}
everything_else() {
  case $process in
    heat)
      distance --delta=isotropic
      score --mode=elbo --exact --num_images=100 --steps=10,25,30
      pixels
      ;;
    *)
      python -m scripts.tools.calibrate --workdir "$run"
      score --mode=elbo --exact --num_images=100 --steps=10,25,50 --delta=posterior,calibrated --eta=1
      pixels --eta=1 --sampler=multistep
      ;;
  esac
}
score() { python evaluate.py --workdir "$run" --out "$run/scores" --seed=1 "$@"; }
samples() { score --num_gen=500 --precision="${PRECISION:-float32}" "$@"; }
pixels() { for mode in spectrum copying; do samples --mode=$mode --steps=25 "$@"; done; }
distance() { samples --mode=fid --feature_extractor=robust_classifier "$@"; }

for data in emoji digits; do
  for seed in 1 2; do
    for process in heat flow_8 gaussian blurring; do arm $data $process $seed; done
  done
  for process in flow_0 flow_2 flow_4 flow_20; do arm $data $process 1; done
done
for steps in 400 6400; do
  for process in heat flow_8; do arm emoji_$steps $process 1; done
done
