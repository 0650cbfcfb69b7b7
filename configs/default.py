"""The base configuration. Every key is here with what it means; an experiment file states only its
differences.

Values are plain numbers, strings and tuples. Whatever can be derived (the blur schedule, the
device, the sampling noise) is derived in code after command-line overrides such as
`--config.model.K=50`.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    """The paper's common settings (Rissanen et al., 2023, appendix), on MNIST-sized images."""
    config = ConfigDict()
    config.seed = 42  # everything random is a function of this number
    config.device = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1"
    # torch.compile's mode: "default", "reduce-overhead" (with CUDA graphs) or "max-autotune";
    # "none" does not compile. It takes minutes when a run starts, and pays on GPUs only
    config.compile = "none"
    # longest wait of one process for the others before the run ends with an error
    config.distributed_timeout_minutes = 120.0

    config.training = training = ConfigDict()
    training.batch_size = 128  # images per optimizer step, in all processes together
    # microbatches of a batch, for less memory; same result but for dropout masks
    training.accumulation_steps = 1
    # p: the loss of level k counts sigma_B,k^p times, scaled to mean 1; the paper's is 0
    training.level_weighting = 0.0
    # activations again in the backward pass instead of keeping them: less memory, more time
    training.recompute = False
    # a checkpoint, ours or the release's, or a run directory, whose averaged weights a new run
    # starts from; "" for random ones
    training.init_from = ""
    # probability that a class-conditional network is not told an image's class, so that it knows
    # images of none, which guidance needs
    training.label_dropout = 0.1
    training.n_iters = 1300001  # optimizer steps in all; raise it to extend a finished run
    training.log_freq = 50  # steps between rows of metrics.jsonl
    training.eval_freq = 100  # steps between evaluations of the loss on held-out images
    training.sampling_freq = 10000  # steps between pictures in samples/
    training.num_samples = 16  # images in each of those pictures
    # training images from which reverse kernels are measured, each at all levels
    training.noise_images = 48
    # steps between numbered checkpoints: checkpoint_n is step n * snapshot_freq
    training.snapshot_freq = 50000
    # numbered checkpoints with weights and optimizer, too: four times as large
    training.snapshot_full = False
    training.keep_snapshots = 0  # so many numbered checkpoints are kept, the last ones; 0 keeps all
    # steps between saves of the checkpoint that a restart continues from
    training.snapshot_freq_for_preemption = 10000
    # successive steps skipped for a non-finite loss or gradient, at which the run stops
    training.max_nonfinite_steps = 10

    config.eval = evaluation = ConfigDict()
    # images at a time where nothing is learnt: evaluation, the prior bank
    evaluation.batch_size = 256
    # held-out images in the evaluation loss, spread evenly; 0 takes all. A forward pass costs a
    # third of a training step's image, so num_images / (3 * eval_freq * batch_size) is the
    # evaluation's share of the time: 2%
    evaluation.num_images = 768

    config.data = data = ConfigDict()
    data.dataset = "mnist"  # mnist5k, emoji32, mnist, cifar10, lsun_church, ffhq, afhq, folder, npy
    # folder or file, or a directory that scripts.tools.pack made of them; empty means the data
    # set's own place below data/
    data.path = ""
    # held-out images of their own, a folder, a pack or a .npy file: then nothing is held out of the
    # others (data sets that come with a split keep its training part); "" holds out a tenth, or
    # what the data set itself does
    data.held_out_path = ""
    # regular expression on names of files (with their folders below data.path) whose first group
    # names the subject, such as "(sub-[0-9]+)": all images of a subject are on one side of the
    # split. For folders; "" takes each image for itself
    data.group_pattern = ""
    # classes of the images: "folders", the folders directly below data.path; a table there, .csv of
    # file,label or NVlabs' dataset.json; or the name of an array in data.path's .npz, such as
    # "labels". Each class is split for itself. "" for none, and where the data set has its own
    data.labels = ""
    data.num_classes = 0  # how many these are; training fills it in where the network is told
    # pixels of both sides, or (height, width); on the command line
    # --config.data.image_size=64 or --config.data.image_size=64,128
    data.image_size = FieldReference(28, field_type=object)
    # how images of another shape get this one: "crop" scales them to cover it and takes the
    # middle, as the release; "pad" scales them to fit in and repeats their edges; "stretch" scales
    # each side for itself
    data.fit = "crop"
    # (low, high): which numbers in images become 0 and 1, such as --config.data.value_range=0,4095
    # for 12 bits. () is (0, 255), for 8-bit images only; others get an error with what was found
    data.value_range = ()
    # cut numbers outside of value_range, as a window does with CT, instead of refusing them
    data.value_clip = False
    # of TIFF stacks and animations: "first" or "all" pages or frames, which stay on one side of a
    # split
    data.frames = "first"
    # 1 (grey), 3 (RGB) or any number; of image files 2 (grey) and 4 (RGB) have transparency last
    data.num_channels = 1
    data.random_flip = False  # mirror training images left-right, half of the time
    data.uniform_dequantization = False  # (v + U[0,1)) / 256 instead of v / 255
    # threads that read images ahead, 0 reads between steps; -1 takes as many as there are cores for
    # encoded images, one for memory-mapped arrays, none for arrays in memory. Results are the same
    data.num_workers = -1

    config.model = model = ConfigDict()
    # what degrades images and is reversed; model_code/__init__.py lists the names
    model.process = "heat"
    model.network = "unet"  # what reverses it; the same file lists the names
    # "paper" follows the paper, "released" the original code: level K is not trained, no noise on
    # prior states, delta 0.01
    model.protocol = "paper"
    # blur levels; a sample takes a network call for each, or for those of model.chain
    model.K = 100
    # levels that are trained and visited: "" for all, "25" for 25 steps, evenly spaced, or all of
    # them as "100,96,...,4,0"; the network is still told k of 0..K, so that weights for all levels
    # can be fine-tuned to fewer (training.init_from)
    model.chain = ""
    # sigma_B[0..K], the blur's length scales in pixels: "log", spaced evenly in log; "matched",
    # such that every step from k = 2 on removes the same variance of the training images; or the K
    # + 1 numbers, 0 first, as a .npy file or a tuple. Checkpoints hold them. Blurring diffusion,
    # with or without blur, has a schedule of its own and only takes "log"
    model.blur_schedule = FieldReference("log", field_type=object)
    # length scale of the first blur level, in pixels; of "log" and "matched"
    model.blur_sigma_min = 0.5
    model.blur_sigma_max = 20.0  # length scale of the last one
    model.sigma = 0.01  # training noise: standard deviation, images in [0, 1]
    # sampling noise delta, as a multiple of sigma, unless --delta is given
    model.delta_over_sigma = 1.25
    # "isotropic": noise of standard deviation delta; "calibrated": mean and variance of each
    # reverse step measured by level and frequency from the trained model; "spectral": the variance
    # alone; "auto": calibrated where that was measured
    model.sampling_noise = "auto"
    model.ema_rate = 0.999  # decay of the moving average of weights, reached after a warm-up
    model.class_conditional = False  # tell the network the classes of images
    # the network works on squares of so many pixels a side, as channels: 2 is 4 times fewer points
    model.patch_size = 1
    model.model_channels = 128  # channels of the first level; a multiple of 32
    # channels of each level, as multiples of model_channels; each level halves the image
    model.channel_mult = (1, 2, 2)
    model.num_res_blocks = 4  # residual blocks per level
    model.attention_levels = (2,)  # levels (0 is full resolution) with self-attention
    model.num_heads = 1  # attention heads, where num_head_channels is -1
    model.num_head_channels = -1  # channels per attention head; -1 takes num_heads heads instead
    model.use_new_attention_order = True  # split q, k, v before heads (True) or after (False)
    # level embedding scales and shifts (True) or is added (False)
    model.use_scale_shift_norm = False
    # residual blocks (True) or plain convolutions (False) change the resolution
    model.resblock_updown = False
    # resolution changes by convolutions (True) or by pooling and repeating pixels (False)
    model.conv_resample = True
    model.dropout = 0.1  # probability, inside residual blocks, training only

    config.optim = optim = ConfigDict()
    optim.optimizer = "Adam"  # Adam or AdamW
    optim.lr = 2e-4  # learning rate after warm-up
    optim.warmup = 5000  # steps over which the learning rate rises linearly
    optim.schedule = "constant"  # afterwards: "constant", or "cosine" down to 0 at n_iters
    optim.beta1 = 0.9  # Adam's decay of the first moment
    optim.beta2 = 0.999  # and of the second
    optim.eps = 1e-8  # Adam's epsilon
    optim.weight_decay = 0.0
    optim.grad_clip = 1.0  # largest gradient norm; 0 does not clip
    optim.automatic_mp = False  # autocast matrix products and convolutions to amp_dtype
    # bfloat16, float16 (with loss scaling), or "auto": bfloat16 unless it is a processor that would
    # emulate it
    optim.amp_dtype = "auto"
    return config


get_default_configs = get_config  # the original release's name for it
