"""Benchmarks: what a step, a codec, a kernel or a link costs, beside its plain form."""
