"""What `dist-teracon bench` runs; a benchmark is one file here with `main(arguments)`, and one name below."""

BENCHMARKS = {
    "kernels": "the convolution stack against plain eager convolutions",
    "step": "a training step against a plain eager one",
}
