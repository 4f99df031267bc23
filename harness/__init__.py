"""A pytest-based benchmarking and regression harness for torchao-quantized language models."""

__version__ = "0.1.0"
