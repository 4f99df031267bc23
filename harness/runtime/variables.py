"""Which of the planner's environment variables a worker gets: those that what runs there reads, and no credential."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from harness.base.secrets import is_secret

# A worker runs code of many packages, and where it is asked to also a model's own: what it does not need stays here.
_NAMES = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TERM",
        "TMPDIR",
        "TMP",
        "TEMP",
        "PWD",
        "HOSTNAME",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "LIBRARY_PATH",
        "CPATH",
        "C_INCLUDE_PATH",
        "CPLUS_INCLUDE_PATH",
        "CC",
        "CXX",
        "CFLAGS",
        "CXXFLAGS",
        "LDFLAGS",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_RUNTIME_DIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GLIBC_TUNABLES",
        "MAX_JOBS",
        "DO_NOT_TRACK",
        "NO_COLOR",
        "FORCE_COLOR",
        "CI",
    ]
)
_FAMILIES = (
    "LC_",
    "PYTHON",
    "MALLOC_",
    "COVERAGE_",
    "HARNESS_",
    "HF_",
    "NLTK_",
    "NPY_",
    "ATEN_",
    "C10_",
    "PROTOCOL_BUFFERS_",
    "TCMALLOC_",
    "MIMALLOC_",
    "QEMU_",
    "ZE_",
    "SYCL_",
    "HUGGINGFACE_",
    "HUGGING_FACE_",
    "TRANSFORMERS_",
    "TOKENIZERS_",
    "SAFETENSORS_",
    "ACCELERATE_",
    "DATASETS_",
    "LM_EVAL_",
    "LMEVAL_",
    "TIKTOKEN_",
    "TORCH",
    "PYTORCH_",
    "AOT",
    "INDUCTOR_",
    "TRITON_",
    "CUTLASS_",
    "TVM_",
    "GLOO_",
    "UCX_",
    "RAY_",
    "NUMBA_",
    "RAYON_",
    "VLLM_",
    "SGLANG_",
    "SGL_",
    "FLASHINFER_",
    "FLASH_",
    "XFORMERS_",
    "EXECUTORCH_",
    "XNNPACK_",
    "ET_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "BLIS_",
    "GOTO_",
    "NUMEXPR_",
    "VECLIB_",
    "DNNL_",
    "ONEDNN_",
    "LRU_CACHE_",
    "CUDA_",
    "CUDNN_",
    "CUBLAS",
    "NVIDIA_",
    "NVTE_",
    "NCCL_",
    "NVSHMEM_",
    "NVRTC_",
    "HIP_",
    "HSA_",
    "ROCM_",
    "ROCR_",
    "ROCBLAS_",
    "MIOPEN_",
    "RCCL_",
    "AMD_",
    "GPU_",
)
_PROXIES = {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}
_USER = re.compile(r"(?<=://)[^/@]*@|^[^/@]*:[^/@]*@")
_OF_A_TEST = "PYTEST_CURRENT_TEST"


def passed_on(environ: Mapping[str, str], also: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables that a worker gets.

    Those are a system's own, and the families that numerical libraries, Hugging Face's, the servers and the drivers of
    GPUs read, but none whose name tells of a credential; proxies go without their passwords. ``also`` are names of the
    user's own, with ``*`` for any characters: whatever they are.
    """
    asked = tuple(also)
    found = {}
    for name, value in environ.items():
        if any(fnmatchcase(name, pattern) for pattern in asked):
            found[name] = value
        elif name.lower() in _PROXIES:
            found[name] = _USER.sub("", value)
        elif (name in _NAMES or name.startswith(_FAMILIES)) and not is_secret(name) and name != _OF_A_TEST:
            found[name] = value
    return found
