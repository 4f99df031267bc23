"""What matrices of the tests' own say of hardware."""

HARDWARE = """
[hardware.cpu]
meaning = "runs on this machine's processor"
arithmetic = ["bfloat16", "int8"]
install = "pip install -e '.[cpu]'"

[hardware.h100]
meaning = "needs an NVIDIA H100 GPU"
vendor = "nvidia"
match = '\\bH100\\b'
capability = "9.0"
arithmetic = ["bfloat16", "int8", "float8"]
install = "pip install -e '.[gpu]'"

[hardware.arm-mobile]
meaning = "exports to ExecuTorch and runs on ARM"
runs = "programs"
needs = ["executorch"]
install = "pip install -e '.[mobile]'"
"""
