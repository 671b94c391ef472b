"""What `dist-teracon bench` runs; a benchmark is one file here with `main(arguments)`, and one name below."""

BENCHMARKS = {
    "kernels": "the convolution stack against plain eager convolutions",
    "attention": "SASRec over histories of many lengths, by kind of padding",
    "companions": "cross-entropy, squared error and ranks against torch's own ways",
    "heads": "a training step and scores with hundreds of thousands of labels",
    "loader": "users a second into batches, at the size of TTL",
    "balance": "how evenly ranks share a step's work: a simulation",
    "data": "preparation of raw files of TTL's shape against a plain loader",
    "step": "a training step against a plain eager one",
    "gpu-step": "a training step on a GPU, and what waits for the GPU",
    "checkpoint": "a checkpoint within an epoch, on a disk and on a store",
    "workers": "one configuration by several processes, torchrun's or Ray's",
    "replay": "a training step by the number of tasks and kind of replay",
    "retention": "a step and a teacher's pass by replayed rows and labels",
    "scaling": "what a step takes on 8 to 512 GPUs: a model on paper",
    "masks": "how open and how alike finished runs' masks are",
    "serve": "a served model under load; an event added to a state",
    "use": "exports against plain inference, a cold process, a state's update",
    "ceiling": "the best scores that sequences of six-tasks-v1 allow",
}
