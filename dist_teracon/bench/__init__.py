"""What `dist-teracon bench` runs; a benchmark is one file here with `main(arguments)`, and one name below."""

BENCHMARKS = {
    "data": "preparation of raw files of TTL's shape against a plain loader",
    "step": "a training step against a plain eager one",
}
